"""What a run asks of people between two levels, and what they may answer. Pure."""

from collections.abc import Mapping
from typing import NoReturn

from pydantic import Field, JsonValue, ValidationError, field_validator

from drpo_graph.errors import ReplyError, ReviewError
from drpo_graph.parts.rewrite_guards import make_guard
from drpo_graph.records import Origin, Record
from drpo_graph.settings.settings import Settings

_MAX_TOLD = 200


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
    """Return the answer to a review as a decision that the run can go on with.

    Args:
        answer: A decision, or its fields.
        request: What was asked.
        settings: The run's: an edit keeps to its rules for placeholders and length.
        initial_prompt: The run's, which says how placeholders are written.

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
