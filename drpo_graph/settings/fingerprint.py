"""Which settings a run's fingerprint holds: all but those that say otherwise beside themselves, in their type."""

from enum import Enum, auto
from typing import Annotated, TypeVar

from pydantic import JsonValue

from drpo_graph.records import Record

T = TypeVar("T")


class LeftOut(Enum):
    """When a setting is no part of the fingerprint."""

    ALWAYS = auto()
    """It says where or how fast a run works, and may change on resume. Files' contents are fingerprinted elsewhere."""
    AT_DEFAULT = auto()
    """Runs that were started before there was the setting are the same."""
    WITHOUT_RETRIEVAL = auto()
    """It decides nothing then."""


Operational = Annotated[T, LeftOut.ALWAYS]
LeftOutAtDefault = Annotated[T, LeftOut.AT_DEFAULT]
RetrievalOnly = Annotated[T, LeftOut.WITHOUT_RETRIEVAL]


def fingerprint_fields(record: Record) -> dict[str, JsonValue]:
    """Return the fields of settings that a fingerprint holds, those of records in them too."""
    fields: dict[str, JsonValue] = {}
    for name, dumped in record.model_dump(mode="json").items():
        value, field = getattr(record, name), type(record).model_fields[name]
        reasons = [LeftOut.ALWAYS]
        if value == field.get_default(call_default_factory=True):
            reasons.append(LeftOut.AT_DEFAULT)
        if not getattr(record, "ret_icl", False):
            reasons.append(LeftOut.WITHOUT_RETRIEVAL)
        if not any(reason in field.metadata for reason in reasons):
            fields[name] = fingerprint_fields(value) if isinstance(value, Record) else dumped
    return fields
