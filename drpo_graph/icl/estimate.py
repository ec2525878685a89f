"""What a run over ICL examples will need, by counting, as a search is estimated."""

from collections.abc import Sequence

from drpo_graph.prompts.library import PromptLibrary
from drpo_graph.records import ROLES, ICLExample, Query, Role, Rollout
from drpo_graph.search.estimate import BYTES_PER_TOKEN, Dataset, Estimate, Measure, add_up, measure_answer, measure_call
from drpo_graph.search.workload import Workload
from drpo_graph.settings.settings import Settings


def estimate_icl(
    examples: Sequence[ICLExample],
    settings: Settings,
    prompts: PromptLibrary,
    *,
    num_iters: int,
    num_samples: int,
    is_worst: bool,
) -> Estimate:
    """Return what the run will use if no example has a perfect score before its last round.

    In the worst case every reply is asked for as often as one can be, and is as long as its limit.
    """
    # The optimizer is asked for as many samples as a round has rewrites.
    shaped = settings.model_copy(update={"n_actions": num_samples, "n_proposed": None})
    data = Dataset(tuple(Query(id=str(n), text=one.query) for n, one in enumerate(examples)))
    per_call: dict[Role, Measure] = {
        role: measure_call(role, shaped, prompts, data, is_worst=is_worst) for role in ROLES
    }
    # Nobody is asked to respond.
    per_call["base"] = Measure(calls=0)
    shown = _measure_rewrite(examples, prompts, is_worst=is_worst) + measure_answer("critic", shaped, is_worst=is_worst)
    per_call["optimizer"] = per_call["optimizer"]._replace(prompt_tokens=shown)
    num_examples = len(examples)
    first = Workload(num_examples, 0, num_examples)
    return add_up(
        [first, *[Workload(0, num_examples, num_examples * num_samples)] * num_iters],
        per_call,
        shaped,
        is_worst=is_worst,
    )


def _measure_rewrite(examples: Sequence[ICLExample], prompts: PromptLibrary, *, is_worst: bool) -> float:
    """Return the tokens of a request for rewrites, without the remarks: of the longest example, or of a usual one."""
    bytes_per_token = BYTES_PER_TOKEN // 2 if is_worst else BYTES_PER_TOKEN
    sizes = [
        sum(
            len(message["content"].encode("utf-8", "replace"))
            for message in prompts.render_rewrite_response(
                Query(id="", text=one.query),
                Rollout(candidate_id="", query_id="", response=one.response, critique=None, reward=None),
            )
        )
        / bytes_per_token
        for one in examples
    ]
    return max(sizes) if is_worst else sum(sizes) / len(sizes)
