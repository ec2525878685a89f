"""What a collection will need, by counting, as a search is estimated."""

import math

from drpo_graph.oirl.collection.inputs import CollectionRunInput
from drpo_graph.oirl.collection.plan import Plan
from drpo_graph.parts.checkers import CRITIC
from drpo_graph.prompts.library import PromptLibrary
from drpo_graph.records import ROLES, Role
from drpo_graph.search.estimate import (
    BYTES_PER_TOKEN,
    Dataset,
    Estimate,
    Measure,
    add_up,
    measure_call,
)
from drpo_graph.search.workload import Workload
from drpo_graph.settings.settings import Settings


def estimate_collection(
    given: CollectionRunInput, settings: Settings, prompts: PromptLibrary, *, is_worst: bool
) -> Estimate:
    """Return what the run will use; in the worst case every reply is asked for again, and as long as its limit."""
    plan = Plan.make(given.questions, given.prompts, num_trials=given.num_trials, model="", checker=given.checker)
    data = Dataset(tuple(one.query for one in given.questions))
    has_critic = given.checker == CRITIC
    asked: set[Role] = {"base", "metrics", "critic"} if has_critic else {"base"}
    per_call: dict[Role, Measure] = {
        role: measure_call(role, settings, prompts, data, is_worst=is_worst) if role in asked else Measure(calls=0)
        for role in ROLES
    }
    per_call["base"] = per_call["base"]._replace(prompt_tokens=_measure_request(given, is_worst=is_worst))
    work = Workload(len(given.questions) if has_critic else 0, 0, plan.num_planned)
    return add_up([work], per_call, settings, is_worst=is_worst)


def _measure_request(given: CollectionRunInput, *, is_worst: bool) -> float:
    """Return the tokens of a prompt with a query: of the longest ones, or of usual ones."""
    bytes_per_token = BYTES_PER_TOKEN // 2 if is_worst else BYTES_PER_TOKEN
    groups = ([one.query.text for one in given.questions], [one.prompt for one in given.prompts])
    total = 0.0
    for texts in groups:
        sizes = [len(text.encode("utf-8", "replace")) / bytes_per_token for text in texts]
        total += max(sizes) if is_worst else sum(sizes) / len(sizes)
    return math.ceil(total)
