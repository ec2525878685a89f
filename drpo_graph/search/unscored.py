"""Answers without a score: run again where the user wants that, and told where a round has no others."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from drpo_graph.errors import SearchStalledError
from drpo_graph.records import Rollout
from drpo_graph.search.session import RunSession
from drpo_graph.search.state import SearchState
from drpo_graph.storage.archive import Change, rollout_key


class Reason(NamedTuple):
    """Why an answer has no score."""

    kind: str
    text: str
    culprit: str = "critic"
    """Whose reply it was that could not be used."""


async def drop_failed(session: RunSession, state: SearchState) -> int:
    """Forget the failed rollouts of the round that has ended, if the user lets the run ask again; return their number.

    A round is asked again once: the caller keeps :attr:`FailureNotes.num_asked` in the state, which is saved together
    with the decision. Until then a kill repeats this, and what has come out meanwhile stays.
    """
    if session.ledger.failures.num_asked <= state.get("num_asked_again", 0):
        return 0
    failed = [one for one in state["rollouts"] if one["is_failed"]]
    doomed: dict[Change, None] = {}
    for one in failed:
        key = rollout_key(one["candidate_id"], one["query_id"])
        rollout = await session.archive.record("rollouts", key, Rollout)
        if rollout is not None and rollout.failure is not None:
            doomed["rollouts", key] = None
    await session.archive.change(doomed)
    return len(failed)


async def describe_failure(session: RunSession, candidate_ids: Iterable[str], query_ids: Sequence[str]) -> Reason:
    """Return why the first of the candidates' answers that has no score has none."""
    for candidate_id in candidate_ids:
        for query_id in query_ids:
            rollout = await session.archive.rollout(candidate_id, query_id)
            failure = rollout.failure
            if failure is not None and failure.kind == "reward_error":
                return Reason(failure.kind, f"{failure.kind}: {failure.detail}", "reward function")
            if failure is not None:
                text = failure.detail if failure.kind == "overflow" else f"{failure.kind}: {failure.detail}"
                return Reason(failure.kind, text, "base model" if rollout.response is None else "critic")
    return Reason("", "no reason recorded")


def make_stalled(message: str, reason: Reason) -> SearchStalledError:
    """Return the error of a search that cannot go on, with what to do about the reason."""
    advice = "The unusable replies are stored, and a resumed run finds them again unless it is told to ask anew. "
    if reason.kind == "reward_error":
        advice += "Mend the reward function before."
    else:
        advice += f"Check the {reason.culprit} with `drpo models check` before."
    if reason.kind == "overflow":
        advice = (
            "Serve the model with a longer context and let the run ask again; or, in a new run, use shorter queries or "
            "bound what the model is shown (base.max_tokens, max_critique_chars, history_window)."
        )
    return SearchStalledError(f"{message}. {advice}")
