"""Reviews in a run's archive: what waits for a decision, what was decided, and what was ruled out by it."""

from collections.abc import Sequence

from drpo_graph.search.beam import hash_prompt
from drpo_graph.search.reviews import ReviewDecision, ReviewedCandidate, ReviewRequest, as_json
from drpo_graph.search.state import CandidateRef, SearchState
from drpo_graph.search.validation import ROOT_ID
from drpo_graph.storage.archive import Archive

_PENDING = "review"


async def put_request(archive: Archive, state: SearchState, *, is_last: bool, takes_edits: bool) -> ReviewRequest:
    """Note that a scored level waits for a decision, and return what is asked."""
    await archive.put(
        "run",
        _PENDING,
        {
            "level": state["level"],
            "is_last": is_last,
            "takes_edits": takes_edits,
            "candidate_ids": [one["id"] for one in state["beam"]],
        },
    )
    request = await find_request(archive)
    assert request is not None, "it was put there, and is not decided"
    return request


async def drop_request(archive: Archive) -> None:
    """Note that nothing waits for a decision any more."""
    if await archive.get("run", _PENDING) is not None:
        await archive.change({("run", _PENDING): None})


async def find_request(archive: Archive) -> ReviewRequest | None:
    """Return what a run waits for, or ``None`` where nothing waits for a decision."""
    stored = await archive.get("run", _PENDING)
    if stored is None:
        return None
    level, ids = stored["level"], stored["candidate_ids"]
    assert isinstance(level, int)
    assert isinstance(ids, list)
    if await find_decision(archive, level) is not None:
        return None
    scores = await archive.scores_by_candidate()
    candidates = [await _describe(archive, str(one), scores[str(one)]) for one in ids]
    return ReviewRequest(
        run_id=archive.run_id,
        level=level,
        is_last=bool(stored["is_last"]),
        takes_edits=bool(stored["takes_edits"]),
        candidates=tuple(candidates),
    )


async def find_decision(archive: Archive, level: int) -> ReviewDecision | None:
    """Return what was decided about a level, or ``None`` where nothing was."""
    stored = await archive.get("reviews", _key(level))
    return None if stored is None else ReviewDecision.model_validate(stored)


async def put_decision(archive: Archive, level: int, decision: ReviewDecision) -> None:
    """Store what was decided about a level: from now on the run goes on by it, whatever happens."""
    await archive.put("reviews", _key(level), as_json(decision))


async def list_decisions(archive: Archive) -> dict[int, ReviewDecision]:
    """Return all decisions of a run, by level."""
    stored = sorted((await archive.get_all("reviews")).items())
    return {int(key): ReviewDecision.model_validate(one) for key, one in stored}


async def find_vetoed(archive: Archive) -> set[str]:
    """Return the hashes of all prompts that were vetoed, but the initial one: others are compared with it."""
    vetoed = {one for decision in (await list_decisions(archive)).values() for one in decision.veto}
    hashes = {hash_prompt(await archive.prompt_of(one)) for one in vetoed}
    return hashes - {hash_prompt(await archive.prompt_of(ROOT_ID))} if hashes else hashes


async def keep_unvetoed(archive: Archive, beam: Sequence[CandidateRef]) -> list[CandidateRef]:
    """Return the candidates of a beam that may be delivered: one that was vetoed may stay until its edit is scored."""
    vetoed = await find_vetoed(archive)
    return [one for one in beam if one["prompt_hash"] not in vetoed]


async def take_from_level(archive: Archive, level: int, decision: ReviewDecision) -> None:
    """Leave in a level's record, which says what is best so far, only what was not vetoed."""
    stored = await archive.get("levels", _key(level))
    if stored is not None and isinstance(beam := stored["beam"], list):
        await archive.put("levels", _key(level), {**stored, "beam": [one for one in beam if one not in decision.veto]})


def _key(level: int) -> str:
    return f"{level:06d}"


async def _describe(
    archive: Archive, candidate_id: str, scores: tuple[float | None, float | None]
) -> ReviewedCandidate:
    stored = await archive.candidate(candidate_id)
    parent_id = stored["parent_id"]
    return ReviewedCandidate(
        id=candidate_id,
        prompt=stored["prompt"],
        origin=stored["origin"],
        author=stored.get("author"),
        reward=scores[0],
        path_reward=scores[1],
        parent_id=parent_id,
        parent_prompt=None if parent_id is None else await archive.prompt_of(parent_id),
    )
