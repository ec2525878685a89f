"""A dataset's record as a query, or what is wrong with it."""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from drpo_graph.data.conversations import MESSAGES_FIELDS, as_list, find_messages, read_exchange, read_turns
from drpo_graph.records import Query, Record, Turn
from drpo_graph.safety.texts import clean_surrogates

TEXT_FIELDS: Final = ("query", "text", "instruction", "prompt", "question", "input")
"""Where a record's text may stand; the first one present counts."""


REFERENCE_FIELDS: Final = ("answer", "reference", "target", "expected_output", "label")
"""Where a record's reference answer may stand; the first one present counts."""

QUERY_FIELDS: Final = frozenset(
    {"id", "kind", "category", "tags", "values", "history", "metadata", "split"}
    | {*TEXT_FIELDS, *MESSAGES_FIELDS, *REFERENCE_FIELDS}
)
"""What is read of a record; anything else is told to be left unread."""
_OPTIONAL: Final = frozenset({"kind", "category", "tags", "values", "metadata", *REFERENCE_FIELDS})


class Malformed(NamedTuple):
    """Stands in for what could not be read."""

    reason: str
    line: int = 1


class AnsweredQuery(NamedTuple):
    """A query with what is known of its answer."""

    query: Query
    reference: str | None
    """The right answer, where the dataset gives one. What is no text stands as JSON."""
    split: str = ""
    """The side that the dataset puts it on: ``train``, ``test`` or none."""


class RowReader(NamedTuple):
    """How the records of one source are read."""

    text_fields: tuple[str, ...] = TEXT_FIELDS
    kind: str | None = None
    """Given to every record instead of its own."""

    def read(self, value: object, *, default_id: str, faults: list[str]) -> Query | None:
        """Return the record's query, ``None`` without an id; what is wrong with the record is added to ``faults``."""
        fields = value if isinstance(value, dict) else _as_fields(value, self.text_fields[0], faults=faults)
        if not isinstance(fields, dict):
            return fields
        text, history = _text_of(fields, self.text_fields, faults=faults)
        query_id = _id_of(fields, default_id, faults=faults)
        # Of a million queries, every default that is left out counts, and so do the calls around the validator.
        given: dict[str, object] = {"id": query_id, "text": text}
        if history:
            given["history"] = tuple(history)
        if not _OPTIONAL.isdisjoint(fields) or self.kind is not None:
            given |= _optional_of(fields, self.kind, faults=faults)
        query: Query | None = Query.__pydantic_validator__.validate_python(given) if query_id else None
        return query


def is_missing(value: object) -> bool:
    """Return whether a cell holds nothing: null, or what tables put in its place (NaN, NaT, NA)."""
    if value is None or isinstance(value, str):
        return value is None
    return _is_nan(value) or type(value).__name__ in ("NAType", "NaTType")


def check_string(value: object, name: str, *, faults: list[str], may_be_blank: bool = False) -> str:
    """Return the value if it is a usable string, else add to ``faults`` and return an empty one."""
    if not isinstance(value, str):
        faults.append(f"{name} must be a string, got {_type_name(value)}")
    elif not value.strip() and not may_be_blank:
        faults.append(f"{name} is blank")
    elif "\0" in value:
        faults.append(f"{name} has a NUL character")
    elif not value.isascii() and clean_surrogates(value) != value:
        faults.append(f"{name} has half of a surrogate pair, which UTF-8 cannot hold")
    else:
        return value
    return ""


def describe_names(names: Iterable[object]) -> str:
    """Return what was found in place of what was expected, cut to a length fit for a message."""
    return "got " + textwrap.shorten(", ".join(ascii(name) for name in names) or "nothing", 100, placeholder=" ...")


def _as_fields(value: object, text_field: str, *, faults: list[str]) -> dict[str, object] | Query | None:
    """Return the fields of a record that is no dict, or the query that it is already; ``None`` where it is neither."""
    if isinstance(value, str):
        return {text_field: value}
    if isinstance(value, AnsweredQuery):
        value = value.query
    if isinstance(value, Query):
        return _check_query(value, faults=faults)
    if isinstance(value, Record):
        return value.model_dump()
    if isinstance(value, Mapping):
        return dict(value)
    faults.append(
        value.reason if isinstance(value, Malformed) else f"expected an object or a string, got {_type_name(value)}"
    )
    return None


def _text_of(
    fields: Mapping[str, object], text_fields: Sequence[str], *, faults: list[str]
) -> tuple[str, Sequence[Turn]]:
    """Return the record's text, and the turns before it."""
    if (found := find_messages(fields, text_fields)) is not None:
        name, messages = found
        own: list[str] = []
        exchange = read_exchange(messages, faults=own)
        faults += [f"{name}: {one}" for one in own]
        if own:
            return "", ()
        query = check_string(exchange.query, f"{name}: the last user turn", faults=faults)
        return query, _check_turns(exchange.history, name, faults=faults)
    for field in text_fields:
        if field in fields and not is_missing(fields[field]):
            break
    else:
        empty = next((name for name in text_fields if name in fields), None)
        if empty is not None:
            faults.append(f"no text: {empty} is {_type_name(fields[empty])}")
        else:
            faults.append(f"no text: expected {' or '.join(text_fields)}, {describe_names(fields)}")
        return "", ()
    text = check_string(fields[field], field, faults=faults)
    if field == "instruction" and not is_missing(fields.get("input")):
        # Alpaca's form: the material that the instruction speaks of.
        material = check_string(fields["input"], "input", faults=faults, may_be_blank=True)
        text = f"{text}\n\n{material}" if material.strip() else text
    return text, _history_of(fields, faults=faults) if "history" in fields else ()


def _history_of(fields: Mapping[str, object], *, faults: list[str]) -> Sequence[Turn]:
    given = _given(fields, "history")
    messages = as_list(given)
    if messages is None:
        if given is not None:
            faults.append(f"history must be a list of messages, got {_type_name(given)}")
        return ()
    own: list[str] = []
    turns = read_turns(messages, faults=own)
    faults += [f"history: {one}" for one in own]
    return _check_turns(turns, "history", faults=faults)


def _check_query(query: Query, *, faults: list[str]) -> Query:
    """Return a query that Python code has made: it holds texts, but of any kind."""
    check_string(query.id, "id", faults=faults)
    check_string(query.text, "text", faults=faults)
    check_string(query.kind, "kind", faults=faults, may_be_blank=True)
    _check_tags(query.tags, faults=faults)
    _check_values(query.values.items(), faults=faults)
    _check_turns(query.history, "history", faults=faults)
    check_string(query.reference, "reference", faults=faults, may_be_blank=True)
    return query


def _check_turns(turns: Sequence[Turn], name: str, *, faults: list[str]) -> Sequence[Turn]:
    for number, turn in enumerate(turns, 1):
        check_string(turn.content, f"{name}: turn {number}", faults=faults, may_be_blank=True)
    return turns


def _id_of(fields: Mapping[str, object], default_id: str, *, faults: list[str]) -> str:
    given = fields.get("id")
    if is_missing(given):
        return default_id
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    return check_string(given, "id", faults=faults).strip()


def _optional_of(fields: Mapping[str, object], kind: object, *, faults: list[str]) -> dict[str, object]:
    """Return what a record may say beside its text, without what it does not say."""
    kind = _given(fields, "kind", "category") if kind is None else kind
    optional = {
        "kind": check_string(kind, "kind", faults=faults, may_be_blank=True).strip() if kind is not None else "",
        "tags": _tags_of(fields, faults=faults),
        "values": _values_of(fields, faults=faults),
        "reference": _reference_of(fields, faults=faults),
        "metadata": _metadata_of(fields, faults=faults),
    }
    return {name: one for name, one in optional.items() if one}


def _tags_of(fields: Mapping[str, object], *, faults: list[str]) -> tuple[str, ...]:
    given = _given(fields, "tags")
    tags = as_list(given)
    if tags is None and given is not None:
        faults.append(f"tags must be a list of strings, got {_type_name(given)}")
    return _check_tags(tags or (), faults=faults)


def _check_tags(tags: Sequence[object], *, faults: list[str]) -> tuple[str, ...]:
    return tuple(check_string(tag, "a tag", faults=faults) for tag in tags)


def _values_of(fields: Mapping[str, object], *, faults: list[str]) -> dict[str, str]:
    """Return what the record fills into the prompt's placeholders."""
    given = _given(fields, "values")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        faults.append(f"values must be an object of strings, got {_type_name(given)}")
        return {}
    return _check_values(given.items(), faults=faults)


def _reference_of(fields: Mapping[str, object], *, faults: list[str]) -> str:
    name = next((one for one in REFERENCE_FIELDS if not is_missing(fields.get(one))), None)
    if name is None:
        return ""
    return check_string(as_text(fields[name]), name, faults=faults, may_be_blank=True)


def _metadata_of(fields: Mapping[str, object], *, faults: list[str]) -> dict[str, object]:
    given = _given(fields, "metadata")
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        faults.append(f"metadata must be an object, got {_type_name(given)}")
        return {}
    try:
        # As it is stored: numbers stay numbers, what JSON has not is text.
        text = json.dumps(given, default=str, allow_nan=False, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        faults.append(f"metadata cannot be kept as JSON ({error})")
        return {}
    check_string(text, "metadata", faults=faults)
    kept: dict[str, object] = json.loads(text)
    return kept


def as_text(value: object) -> str:
    """Return a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _check_values(values: Iterable[tuple[object, object]], *, faults: list[str]) -> dict[str, str]:
    return {
        check_string(name, "a value's name", faults=faults, may_be_blank=True): check_string(
            one, f"value {name!a}", faults=faults, may_be_blank=True
        )
        for name, one in values
    }


def _given(fields: Mapping[str, object], *names: str) -> object:
    """Return the first of the fields that holds something, or ``None``."""
    return next((fields[name] for name in names if not is_missing(fields.get(name))), None)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value


def _type_name(value: object) -> str:
    return "null" if value is None else "NaN" if _is_nan(value) else type(value).__name__
