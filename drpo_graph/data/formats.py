"""The forms in which datasets come: told by name and content, and read record by record."""

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

from pydantic_core import from_json

from drpo_graph.data.rows import TEXT_FIELDS, Malformed, describe_names
from drpo_graph.errors import DatasetError, UsageError
from drpo_graph.safety.installing import tell_install
from drpo_graph.safety.text_files import to_utf8
from drpo_graph.safety.texts import shorten

FileFormat = Literal["text", "jsonl", "json", "csv", "tsv", "parquet"]

PARQUET_SUFFIXES: Final = (".parquet", ".pq")
_SUFFIXES_BY_FORMAT: Final[dict[FileFormat, tuple[str, ...]]] = {
    "text": ("", ".txt", ".text", ".md"),
    "jsonl": (".jsonl", ".ndjson", ".jsonlines", ".ldjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": PARQUET_SUFFIXES,
}
_FORMATS_BY_SUFFIX: Final = {one: form for form, suffixes in _SUFFIXES_BY_FORMAT.items() for one in suffixes}
_OTHERS_BY_BEGINNING: Final = {
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "an archive or a spreadsheet (ZIP)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ": "compressed (xz)",
    b"\x28\xb5\x2f\xfd": "compressed (Zstandard)",
    b"ARROW1": "an Arrow file",
    b"\x93NUMPY": "a NumPy file",
    b"SQLite format 3": "a SQLite database",
    b"%PDF": "a PDF",
}
_DELIMITERS: Final[dict[FileFormat, str]] = {"csv": ",\t;", "tsv": "\t,;"}
_FIRST_LINE = re.compile(rb"\S[^\r\n]*")
_OPENS_JSON = re.compile(rb"[\[{]\s*(?:[\"{\[]|$)")
_LISTS = ("queries", "data")
"""What the list of records may be called in an object."""


def is_dataset_name(path: Path) -> bool:
    """Return whether a file's name alone says that it holds one record after another."""
    return _FORMATS_BY_SUFFIX.get(path.suffix.lower(), "json") not in ("json", "text")


def find_format(suffix: str, data: bytes, *, name: str) -> FileFormat:
    """Return how a file is to be read: as its content says where that is plain, else as its name's ending says.

    Raises:
        DatasetError: it is of another kind, which would be taken for lines of text.
    """
    other = next((what for mark, what in _OTHERS_BY_BEGINNING.items() if data.startswith(mark)), None)
    if other is not None:
        raise DatasetError(f"{name} is {other}: unpack it, or save it as .jsonl, .json, .csv, .tsv, .parquet or .txt.")
    named = _FORMATS_BY_SUFFIX.get(suffix)
    try:
        data = to_utf8(data)
    except UnicodeDecodeError:
        # Told with its place when it is read.
        return named or "text"
    found = _guess(data)
    if found == "parquet" or named in (None, "text"):
        if named is None and found == "text":
            raise DatasetError(
                f"{name}: {suffix} says nothing of how its queries are written. Save it as .jsonl, .json, .csv, .tsv "
                "or .parquet, or as .txt with one query per line."
            )
        return found
    if named == "jsonl" and found == "json":
        return "json"
    if named == "json" and found == "jsonl" and isinstance(_parse_json(_decode(data)), Malformed):
        return "jsonl"
    return named


def read_values(data: bytes, file_format: FileFormat) -> Iterator[tuple[str, object]]:
    """Yield each record's place in its file and what it holds, or what is wrong with it."""
    if file_format == "parquet":
        yield from _iterate_parquet(data)
        return
    try:
        data = to_utf8(data)
    except UnicodeDecodeError as error:
        yield ":1", Malformed(f"not {error.encoding}, which its byte-order mark says it is; save the file as UTF-8")
        return
    # Split on newlines alone: U+2028 and the like may stand inside a query.
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    # Files that were joined have their marks within.
    data = data.replace(b"\n" + codecs.BOM_UTF8, b"\n")
    lines = (_decode_line(line.removesuffix(b"\n"), number) for number, line in enumerate(BytesIO(data), start=1))
    if file_format in ("text", "jsonl"):
        yield from _iterate_lines(lines, is_json=file_format == "jsonl")
        return
    texts: list[str] = []
    malformed: list[Malformed] = []
    for line in lines:
        if isinstance(line, Malformed):
            malformed.append(line)
        else:
            texts.append(line)
    if data.endswith(b"\n"):
        texts.append("")
    if malformed:
        yield from ((f":{line.line}", line) for line in malformed)
    else:
        yield from _iterate_json(texts) if file_format == "json" else _iterate_table(texts, _DELIMITERS[file_format])


def import_arrow() -> ModuleType:
    """Return pyarrow.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module("pyarrow")
    except ImportError as error:
        raise UsageError(f"Parquet needs the extra `oirl`. Run: {tell_install('oirl')}.") from error


def _guess(data: bytes) -> FileFormat:
    """Return what a file's first line says it is; ``text`` where it says nothing."""
    if data.startswith(b"PAR1"):
        return "parquet"
    found = _FIRST_LINE.search(data)
    first = found[0].rstrip() if found else b""
    if not _OPENS_JSON.match(first):
        return _guess_table(first)
    if first.startswith(b"["):
        return "json"
    value = _parse_json(_decode(first))
    if isinstance(value, dict):
        return "json" if any(isinstance(value.get(name), list) for name in _LISTS) else "jsonl"
    return "json" if first.endswith((b"{", b"[", b",")) else "jsonl"


def _guess_table(header: bytes) -> FileFormat:
    """Return the form of a table where a line can only be its header: names, one of them that of a text."""
    forms: tuple[tuple[FileFormat, str], ...] = (("csv", ","), ("tsv", "\t"))
    for file_format, delimiter in forms:
        names = [name.strip() for name in _decode(header).split(delimiter)]
        if len(names) > 1 and set(names) & set(TEXT_FIELDS) and all(re.fullmatch(r"[\w.-]+", one) for one in names):
            return file_format
    return "text"


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _decode_line(line: bytes, number: int) -> str | Malformed:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        return Malformed(f"not UTF-8 ({found}); save the file as UTF-8", number)
    return Malformed("has a NUL character", number) if "\0" in text else text


def _iterate_lines(lines: Iterable[str | Malformed], *, is_json: bool) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(lines, start=1):
        if isinstance(line, Malformed):
            yield f":{number}", line
        elif line.strip():
            yield f":{number}", _parse_json(line) if is_json else line.strip()


def _iterate_json(lines: Iterable[str]) -> Iterator[tuple[str, object]]:
    text = "\n".join(lines)
    value = _parse_json(text) if text.strip() else []
    if isinstance(value, dict):
        value = next((value[key] for key in _LISTS if key in value), value)
    if isinstance(value, Malformed):
        yield f":{value.line}", value
    elif isinstance(value, list):
        yield from ((f": record {number}", item) for number, item in enumerate(value, start=1))
    else:
        yield ":1", Malformed("expected a list of records, or an object with a list 'queries' or 'data'")


def _iterate_table(lines: Sequence[str], delimiters: str) -> Iterator[tuple[str, object]]:
    delimiter = _find_delimiter(lines, delimiters)
    reader = csv.reader((line + "\n" for line in lines), strict=True, skipinitialspace=True, delimiter=delimiter)
    header: list[str] = []
    while True:
        place = f":{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, Malformed(f"not {'TSV' if delimiter == chr(9) else 'CSV'} ({error})")
            continue
        if header and cells:
            yield place, _parse_row(header, cells)
        elif cells:
            header = [cell.strip() for cell in cells]
            if not set(header) & set(TEXT_FIELDS):
                expected = ", ".join(TEXT_FIELDS)
                yield place, Malformed(f"no text column: expected one of {expected}, {describe_names(header)}")
                return


def _find_delimiter(lines: Sequence[str], delimiters: str) -> str:
    """Return the first of the delimiters by which the header has a text column; spreadsheets write any of them."""
    header = next((line for line in lines if line.strip()), "")
    names = {one: {name.strip().strip('"') for name in header.split(one)} for one in delimiters}
    return next((one for one in delimiters if len(names[one]) > 1 and names[one] & set(TEXT_FIELDS)), delimiters[0])


def _parse_row(header: Sequence[str], cells: Sequence[str]) -> object:
    if len(cells) != len(header):
        return Malformed(f"expected {len(header)} cells, got {len(cells)}; put a text with commas in double quotes")
    row: dict[str, object] = {
        name: cell for name, cell in zip(header, cells, strict=True) if cell.strip() or name in TEXT_FIELDS
    }
    values = {name.removeprefix("values."): cell for name, cell in row.items() if name.startswith("values.")}
    if values:
        row["values"] = values
    if "tags" in row:
        row["tags"] = [tag.strip() for tag in str(row["tags"]).split(",") if tag.strip()]
    return row


def _iterate_parquet(data: bytes) -> Iterator[tuple[str, object]]:
    arrow, parquet, number = import_arrow(), import_module("pyarrow.parquet"), 0
    try:
        with parquet.ParquetFile(BytesIO(data)) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f": row {number}", row
    # A text need not be UTF-8, and a name may stand twice.
    except (OSError, arrow.ArrowException, UnicodeDecodeError, KeyError) as error:
        yield f": row {number + 1}", Malformed(f"cannot be read as Parquet ({shorten(str(error))})")


def _parse_json(text: str) -> object:
    try:
        # In an eighth of the time; what it refuses, such as half of a surrogate pair, is told in json's words.
        value: object = from_json(text)
    except ValueError:
        return _parse_slowly(text)
    return value


def _parse_slowly(text: str) -> object:
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        return Malformed(f"not JSON ({error.msg}, column {error.colno})", error.lineno)
    except (ValueError, RecursionError) as error:
        return Malformed(f"not JSON that can be read ({error})")
    return value
