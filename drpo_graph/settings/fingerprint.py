"""Which settings a run's fingerprint holds: all but those that say otherwise beside themselves, in their type."""

from enum import Enum, auto
from typing import Annotated, Any, TypeVar

from pydantic import JsonValue
from pydantic.fields import FieldInfo

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
    return record.model_dump(mode="json", exclude=_find_left_out(record))


def _find_default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True, validated_data={})


def _find_left_out(record: Record) -> dict[str, Any]:
    """Return what to leave out, as ``model_dump`` takes it: whole fields, and those of records in them."""
    left_out: dict[str, Any] = {}
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        if (
            LeftOut.ALWAYS in field.metadata
            or (LeftOut.WITHOUT_RETRIEVAL in field.metadata and not getattr(record, "ret_icl", False))
            or (
                LeftOut.AT_DEFAULT in field.metadata
                and value == field.get_default(call_default_factory=True, validated_data={})
            )
        ):
            left_out[name] = True
        elif isinstance(value, Record):
            left_out[name] = _find_left_out(value)
    return left_out
