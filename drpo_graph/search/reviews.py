"""What a run asks of people between two levels, what they may answer, and where both are kept."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

from pydantic import Field, JsonValue, ValidationError, field_validator

from drpo_graph.errors import ReplyError, ReviewError
from drpo_graph.parts.rewrite_guards import make_guard
from drpo_graph.records import ROOT_ID, CandidateRef, Origin, Record
from drpo_graph.search.beam import hash_prompt
from drpo_graph.search.state import SearchState
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive, scores_by_candidate

_MAX_TOLD = 200

_PENDING = "review"


class ReviewedCandidate(Record):
    """A candidate of the beam, with what it was made from."""

    id: str
    prompt: str
    origin: Origin
    author: str | None = None
    """Who wrote it, where a person did."""
    reward: float | None
    path_reward: float | None
    parent_id: str | None
    parent_prompt: str | None


class ReviewRequest(Record):
    """What a run that pauses asks: whether it may go on with this beam. The value of LangGraph's interrupt."""

    run_id: str
    level: int
    """The level that is scored."""
    is_last: bool
    """Whether no level follows if the beam is approved: it is validated, or delivered."""
    takes_edits: bool
    """Whether a level can follow that scores an edit."""
    candidates: tuple[ReviewedCandidate, ...]
    """The beam, best first."""
    problem: str = ""
    """What was wrong with the former answer to it."""


class ReviewDecision(Record):
    """The answer of a person; candidates that it does not name are approved."""

    author: str = Field(max_length=200)
    """Who decides."""
    veto: tuple[str, ...] = ()
    """Ids of candidates that are to leave the beam, and whose prompts are not to be delivered."""
    edits: dict[str, str] = Field(default_factory=dict)
    """Prompts by the id of the candidate that each is an edit of: its child of human origin in the next level."""
    note: str = Field("", max_length=2_000)
    """Why; kept with the decision."""

    @field_validator("author")
    @classmethod
    def _reject_blank_author(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it is blank")
        return value.strip()


def read_decision(answer: object, request: ReviewRequest, settings: Settings, *, initial_prompt: str) -> ReviewDecision:
    """Return the answer to a review, a decision or its fields, as a decision that the run can go on with.

    An edit keeps to the settings' rules for placeholders and length; the initial prompt says how those are written.

    Raises:
        ReviewError: it is none, names a candidate that is not in the beam, leaves nothing of the beam, or has an edit
            that cannot be used.
    """
    decision = answer if isinstance(answer, ReviewDecision) else _parse(answer)
    ids = [one.id for one in request.candidates]
    for candidate_id in (*decision.veto, *decision.edits):
        if candidate_id not in ids:
            _refuse(request, f"there is no candidate {candidate_id[:_MAX_TOLD]!r} in the beam: {', '.join(ids)}")
    if decision.edits and not request.takes_edits:
        _refuse(
            request,
            "no level follows that could score an edit. Start a new run with the edited prompt as its initial prompt, "
            "or fork this one with a greater depth",
        )
    vetoed = {one.prompt for one in request.candidates if one.id in decision.veto}
    if not [one for one in request.candidates if one.prompt not in vetoed or one.id in decision.edits]:
        _refuse(request, "nothing is left to go on with. Leave a candidate, or edit one")
    for one in request.candidates:
        if (edit := decision.edits.get(one.id)) is not None:
            _check_edit(edit, one, request, settings, initial_prompt=initial_prompt)
    return decision


def _parse(answer: object) -> ReviewDecision:
    if not isinstance(answer, Mapping):
        raise ReviewError(
            "Expected a decision such as {'author': 'Ada', 'veto': ['2.0.1'], 'edits': {'2.0.0': 'PROMPT'}}, got "
            f"{str(answer)[:_MAX_TOLD]!r}."
        )
    try:
        return ReviewDecision.model_validate(dict(answer))
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors()
        )
        raise ReviewError(f"The decision cannot be read: {'; '.join(problems)}.") from error


def _check_edit(
    edit: str, candidate: ReviewedCandidate, request: ReviewRequest, settings: Settings, *, initial_prompt: str
) -> None:
    if not edit.strip():
        _refuse(request, f"the edit of {candidate.id} is blank. Veto the candidate to do without it")
    if edit == candidate.prompt:
        _refuse(request, f"the edit of {candidate.id} changes nothing. Leave the candidate as it is to approve it")
    # A person may quote what a model must not: nothing that was shown counts.
    guard = make_guard(settings, initial_prompt=initial_prompt, prompt=candidate.prompt, former_prompts=(), examples=())
    try:
        guard.check(edit)
    except ReplyError as error:
        _refuse(request, f"the edit of {candidate.id} cannot be used: {error}")


def _refuse(request: ReviewRequest, reason: str) -> NoReturn:
    raise ReviewError(f"Review of level {request.level}: {reason}.")


def as_json(record: Record) -> dict[str, JsonValue]:
    """Return a record as it is stored."""
    fields: dict[str, JsonValue] = record.model_dump(mode="json")
    return fields


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
    scores = scores_by_candidate(await archive.levels())
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
    return await archive.record("reviews", _key(level), ReviewDecision)


async def put_decision(archive: Archive, level: int, decision: ReviewDecision) -> None:
    """Store what was decided about a level: from now on the run goes on by it, whatever happens."""
    await archive.put("reviews", _key(level), as_json(decision))


async def list_decisions(archive: Archive) -> dict[int, ReviewDecision]:
    """Return all decisions of a run, by level."""
    return {int(key): one for key, one in sorted((await archive.records("reviews", ReviewDecision)).items())}


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
