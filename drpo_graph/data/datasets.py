"""Datasets: read queries from files, and say of each record that cannot be read what is wrong with it."""

import codecs
import csv
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from drpo_graph.errors import DatasetError
from drpo_graph.records import Query

TEXT_FIELDS = ("query", "text", "instruction", "prompt", "question", "input")
"""Where a record's text may stand; the first one present counts."""

MAX_PRINTED_PROBLEMS = 20

FileFormat = Literal["text", "jsonl", "json", "csv"]

_FORMATS_BY_SUFFIX: dict[str, FileFormat] = {".jsonl": "jsonl", ".json": "json", ".csv": "csv"}


class _Malformed(NamedTuple):
    """Stands in for what could not be read."""

    reason: str
    line: int = 1


class _DataFile(NamedTuple):
    """How one file is read, and what all its records share."""

    name: str
    """As problems name it."""
    format: FileFormat
    id_prefix: str
    kind: str | None = None
    """Given to every record instead of its own."""
    text_fields: tuple[str, ...] = TEXT_FIELDS


_PUBLISHED_FILES = (
    # The full Alpaca data has a field "text" too, with the answer in it.
    _DataFile("alpaca_train.json", "json", id_prefix="open", kind="open", text_fields=("instruction",)),
    _DataFile("lima_subsample_train.json", "json", id_prefix="knowledge", kind="knowledge"),
    _DataFile("mal_train.txt", "text", id_prefix="unsafe", kind="unsafe"),
)


def load_queries(source: str | Path, *, stdin: TextIO | None = None) -> tuple[Query, ...]:
    """Return the queries of one dataset, in file order.

    Args:
        source: A ``.jsonl``, ``.json``, ``.csv`` or text file (one query per line), a folder in the published
            ``data_dir`` layout, or ``-`` for standard input.
        stdin: Read instead of ``sys.stdin`` when ``source`` is ``-``.

    Raises:
        DatasetError: The source cannot be read, is empty, or has malformed records; all of them are named.
    """
    return tuple(query for query, _ in load_records(source, stdin=stdin))


def load_records(source: str | Path, *, stdin: TextIO | None = None) -> tuple[tuple[Query, object], ...]:
    """Return the queries of one dataset, as :func:`load_queries` does, each with the record that it was read from.

    Raises:
        DatasetError: The source cannot be read, is empty, or has malformed records; all of them are named.
    """
    if str(source) == "-":
        return _load_stdin(sys.stdin if stdin is None else stdin)
    path = Path(source)
    if os.path.isdir(path):
        return _load_folder(path)
    file_format = _FORMATS_BY_SUFFIX.get(path.suffix.lower(), "text")
    data_file = _DataFile(_printable(str(path)), file_format, id_prefix=_printable(path.stem))
    return _collect_records([(data_file, _read_bytes(path))], data_file.name)


def load_bundled_queries() -> tuple[Query, ...]:
    """Return the queries that come with the package."""
    data_file = _DataFile("drpo_graph/data/queries.jsonl", "jsonl", id_prefix="bundled")
    try:
        data = files("drpo_graph.data").joinpath("queries.jsonl").read_bytes()
    except (OSError, ModuleNotFoundError) as error:
        raise DatasetError(f"The bundled queries {data_file.name} are missing: install drpo-graph again.") from error
    return tuple(query for query, _ in _collect_records([(data_file, data)], data_file.name))


def _load_stdin(stdin: TextIO) -> tuple[tuple[Query, object], ...]:
    buffer = getattr(stdin, "buffer", None)
    try:
        # Bytes, where there are any: a terminal's encoding would hide what is not UTF-8.
        data = buffer.read() if buffer is not None else stdin.read().encode("utf-8", "surrogatepass")
    except (OSError, ValueError) as error:
        raise DatasetError(f"Standard input cannot be read ({error}): give a file instead of '-'.") from error
    start = data.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    file_format: FileFormat = "jsonl" if start == b"{" else "json" if start == b"[" else "text"
    note = f" (read as {file_format} by its first character; save it as a file to choose)"
    return _collect_records([(_DataFile("stdin", file_format, id_prefix="stdin"), data)], "stdin" + note)


def _load_folder(folder: Path) -> tuple[tuple[Query, object], ...]:
    name = _printable(str(folder))
    parts = [
        (data_file._replace(name=os.path.join(name, data_file.name)), _read_bytes(folder / data_file.name))
        for data_file in _PUBLISHED_FILES
        if os.path.lexists(folder / data_file.name)
    ]
    if not parts:
        expected = ", ".join(data_file.name for data_file in _PUBLISHED_FILES)
        raise DatasetError(f"{name} is a folder in which none of {expected} is found: add one, or give a file.")
    return _collect_records(parts, name)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        advice = "give a file that exists and that this user may read, or '-' for standard input"
        raise DatasetError(f"{_printable(str(path))} cannot be read ({reason}): {advice}.") from error


def _collect_records(parts: Iterable[tuple[_DataFile, bytes]], name: str) -> tuple[tuple[Query, object], ...]:
    """Return the queries of all files with their records, or raise one error with every problem in them."""
    found: list[tuple[Query, object]] = []
    problems: list[str] = []
    place_by_id: dict[str, str] = {}
    for data_file, data in parts:
        for number, (place, value) in enumerate(_read_records(data_file, data), start=1):
            place = data_file.name + place
            faults: list[str] = []
            query = _build_query(value, data_file, default_id=f"{data_file.id_prefix}-{number:03d}", faults=faults)
            if query is not None and place_by_id.setdefault(query.id, place) != place:
                faults.append(f"id {query.id!r} is taken by {place_by_id[query.id]}")
            if faults:
                problems.append(f"{place}: {'; '.join(faults)}")
            elif query is not None:
                found.append((query, value))
    if problems:
        raise _problems_error(name, problems)
    if not found:
        raise DatasetError(f"{name} is empty: expected at least one query.")
    return tuple(found)


def _problems_error(name: str, problems: list[str]) -> DatasetError:
    """Return an error that prints the first problems and carries them all."""
    if len(problems) == 1 and problems[0].startswith(name):
        error = DatasetError(f"{problems[0]}; correct or remove it.")
    else:
        printed = problems[:MAX_PRINTED_PROBLEMS]
        if len(problems) > len(printed):
            printed.append(f"... and {len(problems) - len(printed)} more")
        headline = f"{name}: {len(problems)} malformed record(s); correct or remove them."
        error = DatasetError(headline, tuple(printed))
    error.problems = tuple(problems)
    return error


def _read_records(data_file: _DataFile, data: bytes) -> Iterator[tuple[str, object]]:
    """Yield each record's place in its file and its decoded JSON, or what is wrong with it."""
    # Split on newlines alone: U+2028 and the like may stand inside a query.
    unified = data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = [_decode_line(line, number) for number, line in enumerate(unified.split(b"\n"), start=1)]
    malformed = [line for line in lines if isinstance(line, _Malformed)]
    texts = [line for line in lines if isinstance(line, str)]
    if data_file.format in ("text", "jsonl"):
        return _iterate_lines(lines, is_json=data_file.format == "jsonl")
    if malformed:
        return ((f":{line.line}", line) for line in malformed)
    return _iterate_json(texts) if data_file.format == "json" else _iterate_csv(texts)


def _decode_line(line: bytes, number: int) -> str | _Malformed:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        return _Malformed(f"not UTF-8 ({found}); save the file as UTF-8", number)
    return _Malformed("has a NUL character", number) if "\0" in text else text


def _iterate_lines(lines: Iterable[str | _Malformed], *, is_json: bool) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(lines, start=1):
        if isinstance(line, _Malformed):
            yield f":{number}", line
        elif line.strip():
            yield f":{number}", _parse_json(line) if is_json else line.strip()


def _iterate_json(lines: Iterable[str]) -> Iterator[tuple[str, object]]:
    text = "\n".join(lines)
    value = _parse_json(text) if text.strip() else []
    if isinstance(value, dict):
        value = next((value[key] for key in ("queries", "data") if key in value), value)
    if isinstance(value, _Malformed):
        yield f":{value.line}", value
    elif isinstance(value, list):
        yield from ((f": record {number}", item) for number, item in enumerate(value, start=1))
    else:
        yield ":1", _Malformed("expected a list of records, or an object with a list 'queries' or 'data'")


def _iterate_csv(lines: Sequence[str]) -> Iterator[tuple[str, object]]:
    reader = csv.reader((line + "\n" for line in lines), strict=True, skipinitialspace=True)
    header: list[str] = []
    while True:
        place = f":{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, _Malformed(f"not CSV ({error})")
            continue
        if header and cells:
            yield place, _parse_row(header, cells)
        elif cells:
            header = [cell.strip() for cell in cells]
            if not set(header) & set(TEXT_FIELDS):
                yield place, _Malformed(f"no text column: expected one of {', '.join(TEXT_FIELDS)}, {_got(header)}")
                return


def _parse_row(header: Sequence[str], cells: Sequence[str]) -> object:
    if len(cells) != len(header):
        return _Malformed(f"expected {len(header)} cells, got {len(cells)}; put a text with commas in double quotes")
    row: dict[str, object] = {
        name: cell for name, cell in zip(header, cells, strict=True) if cell.strip() or name in TEXT_FIELDS
    }
    values = {name.removeprefix("values."): cell for name, cell in row.items() if name.startswith("values.")}
    if values:
        row["values"] = values
    if "tags" in row:
        row["tags"] = [tag.strip() for tag in str(row["tags"]).split(",") if tag.strip()]
    return row


def _parse_json(text: str) -> object:
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        return _Malformed(f"not JSON ({error.msg}, column {error.colno})", error.lineno)
    except (ValueError, RecursionError) as error:
        return _Malformed(f"not JSON that can be read ({error})")
    return value


def _build_query(value: object, data_file: _DataFile, *, default_id: str, faults: list[str]) -> Query | None:
    """Return the record's query, ``None`` without an id; what is wrong with the record is added to ``faults``."""
    fields = {data_file.text_fields[0]: value} if isinstance(value, str) else value
    if isinstance(fields, _Malformed):
        faults.append(fields.reason)
        return None
    if not isinstance(fields, dict):
        faults.append(f"expected an object or a string, got {_type_name(fields)}")
        return None
    text = _text_of(fields, data_file.text_fields, faults=faults)
    query_id = fields.get("id")
    if isinstance(query_id, int) and not isinstance(query_id, bool):
        query_id = str(query_id)
    query_id = default_id if query_id is None else _check_string(query_id, "id", faults=faults)
    kind = fields.get("category") if fields.get("kind") is None else fields["kind"]
    if data_file.kind is not None or kind is None:
        kind = data_file.kind or ""
    kind = _check_string(kind, "kind", faults=faults, may_be_blank=True)
    tags = fields.get("tags")
    if tags is not None and not isinstance(tags, list):
        faults.append(f"tags must be a list of strings, got {_type_name(tags)}")
        tags = None
    tags = tuple(_check_string(tag, "a tag", faults=faults) for tag in tags or ())
    values = _values_of(fields, faults=faults)
    return Query(id=query_id.strip(), text=text, kind=kind.strip(), tags=tags, values=values) if query_id else None


def _values_of(fields: dict[str, object], *, faults: list[str]) -> dict[str, str]:
    """Return what the record fills into the prompt's placeholders."""
    given = fields.get("values")
    if given is None:
        return {}
    if not isinstance(given, dict):
        faults.append(f"values must be an object of strings, got {_type_name(given)}")
        return {}
    return {
        name: _check_string(one, f"value {name!r}", faults=faults, may_be_blank=True) for name, one in given.items()
    }


def _text_of(fields: dict[str, object], text_fields: Sequence[str], *, faults: list[str]) -> str:
    field = next((name for name in text_fields if fields.get(name) is not None), None)
    if field is None:
        faults.append(f"no text: expected {' or '.join(text_fields)}, {_got(fields)}")
        return ""
    text = _check_string(fields[field], field, faults=faults)
    if field == "instruction" and fields.get("input") is not None:
        # Alpaca's form: the material that the instruction speaks of.
        material = _check_string(fields["input"], "input", faults=faults, may_be_blank=True)
        return f"{text}\n\n{material}" if material.strip() else text
    return text


def _check_string(value: object, name: str, *, faults: list[str], may_be_blank: bool = False) -> str:
    """Return the value if it is a usable string, else add to ``faults`` and return an empty one."""
    if not isinstance(value, str):
        faults.append(f"{name} must be a string, got {_type_name(value)}")
    elif not value.strip() and not may_be_blank:
        faults.append(f"{name} is blank")
    elif "\0" in value:
        faults.append(f"{name} has a NUL character")
    elif _printable(value) != value:
        faults.append(f"{name} has half of a surrogate pair, which UTF-8 cannot hold")
    else:
        return value
    return ""


def _printable(text: str) -> str:
    """Return the text with what UTF-8 cannot hold replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _type_name(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _got(names: Iterable[str]) -> str:
    return "got " + textwrap.shorten(", ".join(ascii(name) for name in names) or "nothing", 100, placeholder=" ...")
