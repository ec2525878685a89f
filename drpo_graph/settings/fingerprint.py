"""Which settings a run's fingerprint holds: all but those that say otherwise beside themselves, in their type."""

from enum import Enum, auto
from typing import Annotated, TypeVar

from pydantic import JsonValue

from drpo_graph.records import Record

T = TypeVar("T")


class Mark(Enum):
    """When a field is no part of the fingerprint."""

    OPERATIONAL = auto()
    AT_DEFAULT = auto()
    WITHOUT_RETRIEVAL = auto()


Operational = Annotated[T, Mark.OPERATIONAL]
"""Never in the fingerprint: it says where, how fast or how long a run works, and may change on resume.

Of files, what is in them is fingerprinted elsewhere."""
LeftOutAtDefault = Annotated[T, Mark.AT_DEFAULT]
"""In the fingerprint unless at its default: runs that were started before there was the setting keep theirs."""
RetrievalOnly = Annotated[T, Mark.WITHOUT_RETRIEVAL]
"""In the fingerprint only with ``ret_icl``: without it, it decides nothing."""


def fingerprint_fields(record: Record) -> dict[str, JsonValue]:
    """Return the fields of settings that a fingerprint holds, those of records in them too."""
    fields: dict[str, JsonValue] = record.model_dump(mode="json", exclude=_find_left_out(record))
    nested = {name: value for name in fields if isinstance(value := getattr(record, name), Record)}
    return fields | {name: fingerprint_fields(value) for name, value in nested.items()}


def _find_left_out(record: Record) -> set[str]:
    left_out = set()
    for name, field in type(record).model_fields.items():
        holds_by_mark = {
            Mark.OPERATIONAL: True,
            Mark.AT_DEFAULT: getattr(record, name) == field.get_default(call_default_factory=True),
            Mark.WITHOUT_RETRIEVAL: not getattr(record, "ret_icl", False),
        }
        if any(holds for mark, holds in holds_by_mark.items() if mark in field.metadata):
            left_out.add(name)
    return left_out
