"""What a collection has come to so far: by prompt, and as demonstrations."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from pydantic import JsonValue

from drpo_graph.oirl.collection.inputs import Question, TriedPrompt
from drpo_graph.oirl.collection.plan import Plan, Unit
from drpo_graph.oirl.demonstrations import Demonstration
from drpo_graph.records import PromptOutcome
from drpo_graph.storage.archive import Archive

StoredTrials = Mapping[str, Mapping[str, JsonValue]]
"""By key: the outcome, the tokens, and why there is no outcome."""


class Unlabelled(NamedTuple):
    """A trial without an outcome."""

    query: str
    prompt_name: str
    kind: str
    detail: str


class Collected(NamedTuple):
    """All trials that are made, in the run's order."""

    demonstrations: list[Demonstration]
    unlabelled: list[Unlabelled]
    num_planned: int


async def tally_prompts(archive: Archive, trials: StoredTrials) -> tuple[PromptOutcome, ...]:
    """Return what became of each prompt, in the run's order."""
    prompts = {int(key): one for key, one in (await archive.records("prompts", TriedPrompt)).items()}
    by_prompt: dict[int, list[Mapping[str, JsonValue]]] = {number: [] for number in prompts}
    for key, stored in trials.items():
        by_prompt[Unit.parse(key).prompt].append(stored)
    return tuple(_tally(prompt, by_prompt[number]) for number, prompt in sorted(prompts.items()))


async def collect_rows(archive: Archive) -> Collected:
    """Return what a run has collected; nothing where it has not begun."""
    if await archive.get("run", "plan") is None:
        return Collected([], [], 0)
    plan = await Plan.load(archive)
    questions = await archive.records("questions", Question)
    prompts = await archive.records("prompts", TriedPrompt)
    collected = Collected([], [], plan.num_planned)
    for unit, stored in _in_order(await archive.get_all("trials")):
        question, prompt = questions[str(unit.query)], prompts[str(unit.prompt)]
        failure = stored["failure"]
        if isinstance(failure, dict):
            kind, detail = str(failure["kind"]), str(failure["detail"])
            collected.unlabelled.append(Unlabelled(question.query.text, prompt.name, kind, detail))
            continue
        collected.demonstrations.append(
            Demonstration(
                query=question.query.text,
                prompt=prompt.prompt,
                outcome=cast(float, stored["outcome"]),
                model=plan.model,
                split=question.split,
                tokens=cast("int | None", stored["tokens"]),
                prompt_name=prompt.name,
            )
        )
    return collected


def _in_order(trials: StoredTrials) -> Iterator[tuple[Unit, Mapping[str, JsonValue]]]:
    for unit in sorted(map(Unit.parse, trials)):
        yield unit, trials[unit.key]


def _tally(prompt: TriedPrompt, trials: list[Mapping[str, JsonValue]]) -> PromptOutcome:
    outcomes = [cast(float, one["outcome"]) for one in trials if one["outcome"] is not None]
    tokens = [cast(int, one["tokens"]) for one in trials if one["outcome"] is not None and one["tokens"] is not None]
    return PromptOutcome(
        name=prompt.name,
        prompt=prompt.prompt,
        num_labelled=len(outcomes),
        num_unlabelled=len(trials) - len(outcomes),
        # Exact, and so the same in whatever order the trials came.
        mean_outcome=math.fsum(outcomes) / len(outcomes) if outcomes else None,
        mean_tokens=sum(tokens) / len(tokens) if tokens else None,
    )
