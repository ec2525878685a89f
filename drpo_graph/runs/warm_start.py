"""Begin where a former run ended: with its best prompt, and with the rewrites that it tried and found worse."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from drpo_graph.errors import SettingsError, UsageError
from drpo_graph.records import ROOT_ID, Candidate, RejectedRewrite, WarmStart
from drpo_graph.runs.reading import load_run
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.protocols import Storage

MAX_REJECTED = 8
"""Rejected rewrites that the optimizer is shown, in every one of its requests."""
MAX_REJECTED_CHARS = 8_000
"""Of all of them together; about four to a token."""


async def load_warm_start(
    place: str | Path | Storage,
    thread_id: str,
    *,
    max_rejected: int = MAX_REJECTED,
    max_chars: int = MAX_REJECTED_CHARS,
) -> WarmStart:
    """Return what a new run can begin with from a former one, finished or not.

    Args:
        place: What keeps the former run: a file, or the URI of a database.
        thread_id: The former run.
        max_rejected: How many of its rejected rewrites the optimizer is shown.
        max_chars: Bound on their characters together; one that does not fit is left out whole.

    Raises:
        RunNotFoundError: there is no such run.
        UsageError: it has scored nothing yet.
    """
    run = await load_run(find_storage(place), thread_id)
    best_id = None
    if run.result is not None:
        best_id = run.result.candidate_id
    elif run.beams:
        # All of the beam may have been vetoed.
        best_id = run.beams[-1][0] if run.beams[-1] else ROOT_ID
    best = next((one for one in run.tree if one.id == best_id), None)
    if best is None:
        raise UsageError(f"Run {thread_id!r} has scored nothing yet: there is no prompt to start from.")
    rejected = choose_rejected(run.tree, best=best, max_rejected=max_rejected, max_chars=max_chars)
    return WarmStart(source=thread_id, system_prompt=best.prompt, rejected=rejected)


def choose_rejected(
    tree: Sequence[Candidate], *, best: Candidate, max_rejected: int, max_chars: int
) -> tuple[RejectedRewrite, ...]:
    """Return the rewrites of a run that scored below their parents, those that fell most first.

    The best one, with which the new run begins, and what led to it are no mistakes, whatever they scored once.
    """
    chosen: list[RejectedRewrite] = []
    seen, num_chars = _prompts_on_the_way(tree, best), 0
    for one in sorted(_find_worse(tree), key=lambda one: one.reward - one.parent_reward):
        fits = len(chosen) < max_rejected and num_chars + len(one.prompt) <= max_chars
        if fits and one.prompt not in seen:
            chosen.append(one)
            num_chars += len(one.prompt)
        seen.add(one.prompt)
    return tuple(chosen)


def start_from(settings: Settings, found: WarmStart) -> Settings:
    """Return the settings with the prompt of a warm start.

    Raises:
        SettingsError: they give another initial prompt.
    """
    is_given = "initial_prompt" in settings.model_fields_set
    if is_given and settings.initial_prompt != found.system_prompt:
        raise SettingsError(
            f"A run starts from one prompt: give an initial prompt, or a warm start ({found.source}), not both."
        )
    return Settings.model_validate({**settings.model_dump(exclude_unset=True), "initial_prompt": found.system_prompt})


def _prompts_on_the_way(tree: Sequence[Candidate], best: Candidate) -> set[str]:
    by_id, prompts = {one.id: one for one in tree}, {best.prompt}
    while best.parent_id is not None and best.parent_id in by_id:
        best = by_id[best.parent_id]
        prompts.add(best.prompt)
    return prompts


def _find_worse(tree: Sequence[Candidate]) -> Iterable[RejectedRewrite]:
    reward_by_id = {one.id: one.reward for one in tree}
    for one in tree:
        parent_reward = reward_by_id.get(one.parent_id or "")
        if one.origin != "rewrite" or one.reward is None or parent_reward is None:
            continue
        if one.reward < parent_reward:
            yield RejectedRewrite(prompt=one.prompt, reward=one.reward, parent_reward=parent_reward)
