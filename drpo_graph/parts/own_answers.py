"""What parts of the user's own say: taken as it is plainly meant, else refused by the part's name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.messages import BaseMessage
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from drpo_graph.errors import PartError, ReplyError
from drpo_graph.parts.screens import ScreenChoice
from drpo_graph.parts.trajectories import render_trajectory
from drpo_graph.records import CandidateRef, Critique, ICLExample, Metric, MetricSelection, Record
from drpo_graph.safety.texts import clean_surrogates

_MAX_TOLD = 80

_Made = TypeVar("_Made", bound=Record)


def take_text(said: object, *, called: str) -> str:
    """Return a text, or a message's text.

    Raises:
        PartError: it is neither.
    """
    if isinstance(said, str | BaseMessage):
        # Half of a character cannot be stored or sent: as in a model's reply, it is left out.
        return clean_surrogates(str(said.text if isinstance(said, BaseMessage) else said))
    raise _refuse(said, "a text or a message", called=called)


def take_response(said: object, *, called: str) -> str:
    """Return an app's response as text; an agent's messages, alone or in a state, as what it did and its answer.

    Raises:
        PartError: it is none.
    """
    messages = said.get("messages") if isinstance(said, Mapping) else said
    if not isinstance(messages, list | tuple):
        return take_text(said, called=called)
    try:
        return render_trajectory(messages)
    except ValueError as error:
        raise _refuse(said, f"a text or messages ({error})", called=called) from error


def take_rewrites(said: object) -> list[str]:
    """Return a rewriter's prompts; a single text is one.

    Raises:
        PartError: they are no texts.
    """
    called = "the rewriter"
    if isinstance(said, str | BaseMessage):
        return [take_text(said, called=called)]
    if isinstance(said, Mapping) or not isinstance(said, Iterable):
        raise _refuse(said, "a list of prompts", called=called)
    return [take_text(one, called=called) for one in said]


def take_selection(said: object) -> MetricSelection:
    """Return a metric selector's choice, which may be a list of metrics.

    Raises:
        ReplyError: it chose none.
        PartError: it is no selection.
    """
    called = "the metric selector"
    if isinstance(said, Sequence) and all(isinstance(one, Metric) for one in said):
        said = MetricSelection(metrics=tuple(said))
    selection = _make(MetricSelection, said, called=called)
    if not selection.metrics:
        raise ReplyError(f"{called} chose no metric", kind="empty")
    return selection


def take_critique(said: object) -> Critique:
    """Return what a critic says of a response.

    Raises:
        ReplyError: it holds no score.
        PartError: it is no critique.
    """
    critique = _make(Critique, said, called="the critic")
    if not critique.scores:
        raise ReplyError("the critic gave no score", kind="empty")
    return critique


def take_examples(said: object, *, called: str) -> list[ICLExample]:
    """Return a retriever's examples.

    Raises:
        PartError: they are none.
    """
    if isinstance(said, str | Mapping) or not isinstance(said, Iterable):
        raise _refuse(said, "a list of ICLExample", called=called)
    return [_make(ICLExample, one, called=called) for one in said]


def take_choice(said: object) -> ScreenChoice:
    """Return a screen's choice, which may be a list of places.

    Raises:
        PartError: it is none.
    """
    if isinstance(said, ScreenChoice):
        return said
    if isinstance(said, list | tuple) and all(type(one) is int for one in said):
        return ScreenChoice(tuple(said))
    raise _refuse(said, "a ScreenChoice", called="the screen")


def take_beam(said: object, children: Sequence[CandidateRef]) -> list[CandidateRef]:
    """Return a beam policy's choice.

    Raises:
        PartError: it is empty, or holds what is no candidate of the level, or one twice.
    """
    expected = f"a list of at least one of the level's {len(children)} candidates"
    if not isinstance(said, list | tuple) or not said:
        raise _refuse(said, expected, called="the beam policy")
    known = [child["id"] for child in children]
    ids = [one.get("id") if isinstance(one, Mapping) else None for one in said]
    if not set(ids) <= set(known) or len(set(ids)) < len(ids):
        raise _refuse(said, f"{expected}, each once", called="the beam policy")
    return list(said)


def tell_said(said: object) -> str:
    """Return how messages show what a part said: its kind and how it begins."""
    text = repr(said)
    return f"{type(said).__name__} {text[:_MAX_TOLD]}{'...' if len(text) > _MAX_TOLD else ''}"


def clean_record(made: _Made) -> _Made:
    """Return a record without halves of characters in its texts, which cannot be stored."""
    try:
        made.model_dump_json()
    except PydanticSerializationError:
        return type(made).model_validate(_clean(made.model_dump()))
    return made


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean_surrogates(value)
    if isinstance(value, dict):
        return {_clean(name): _clean(one) for name, one in value.items()}
    return type(value)(map(_clean, value)) if isinstance(value, list | tuple) else value


def _make(kind: type[_Made], said: object, *, called: str) -> _Made:
    try:
        return clean_record(said if isinstance(said, kind) else kind.model_validate(said))
    except ValidationError as error:
        raise _refuse(said, f"one {kind.__name__}", called=called) from error


def _refuse(said: object, expected: str, *, called: str) -> PartError:
    name = called[0].upper() + called[1:]
    advice = "Mend it, then resume; a mended function is taken with --force."
    return PartError(f"{name} returned {tell_said(said)}: expected {expected}. {advice}")
