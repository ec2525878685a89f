"""Datasets: read queries from files, and say of each record that cannot be read what is wrong."""

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

from drpo_graph.data.formats import FileFormat, find_format, read_values
from drpo_graph.data.rows import QUERY_FIELDS, RowReader
from drpo_graph.errors import DatasetError
from drpo_graph.records import Query
from drpo_graph.safety.api_keys import KeyFinder
from drpo_graph.safety.text_files import read_bytes
from drpo_graph.safety.texts import shorten

logger = logging.getLogger(__name__)

MAX_PRINTED_PROBLEMS = 20


class _DataFile(NamedTuple):
    """How one file is read, and what all its records share."""

    name: str
    """As problems name it."""
    format: FileFormat
    id_prefix: str
    reader: RowReader = RowReader()


_PUBLISHED_FILES = (
    # The full Alpaca data has a field "text" too, with the answer in it.
    _DataFile("alpaca_train.json", "json", "open", RowReader(kind="open", text_fields=("instruction",))),
    _DataFile("lima_subsample_train.json", "json", "knowledge", RowReader(kind="knowledge")),
    _DataFile("mal_train.txt", "text", "unsafe", RowReader(kind="unsafe")),
)

_Source = tuple[_DataFile, bytes]

T = TypeVar("T")
Make = Callable[[Query, object, list[str]], T]
"""Makes of a query, and the record that it was read from, what is wanted; what is wrong is added to the list."""


def load_queries(source: str | Path, *, stdin: TextIO | None = None) -> tuple[Query, ...]:
    """Return the queries of one dataset, in file order.

    Args:
        source: A file of JSON lines (``.jsonl``, ``.ndjson``, ``.jsonlines``), JSON, CSV, TSV, Parquet or text (one
            query per line), a folder in the published ``data_dir`` layout, or ``-`` for standard input. Content that
            is plainly of another of these forms than the name says is read as what it is.
        stdin: Read instead of ``sys.stdin`` when ``source`` is ``-``.

    Raises:
        DatasetError: The source cannot be read, is empty, or has malformed records; all of them are named.
    """
    return load_rows(source, stdin=stdin, make=take_query)


def load_rows(
    source: str | Path, *, stdin: TextIO | None = None, make: Make[T], known: Set[str] = QUERY_FIELDS
) -> tuple[T, ...]:
    """Return what is made of the records of one dataset, which is read as :func:`load_queries` does.

    Args:
        known: The fields that are read; a warning tells of others.

    Raises:
        DatasetError: The source cannot be read, is empty, or has malformed records; all of them are named.
    """
    parts, name = _open(source, stdin)
    with without_sweeps():
        return tuple(_iterate_records(parts, name, make=make, known=known))


def take_query(query: Query, record: object, faults: list[str]) -> Query:
    """Return the query alone."""
    return query


def load_bundled_queries() -> tuple[Query, ...]:
    """Return the queries that come with the package."""
    data_file = _DataFile("drpo_graph/data/queries.jsonl", "jsonl", id_prefix="bundled")
    try:
        data = files("drpo_graph.data").joinpath("queries.jsonl").read_bytes()
    except (OSError, ModuleNotFoundError) as error:
        raise DatasetError(f"The bundled queries {data_file.name} are missing: install drpo-graph again.") from error
    return tuple(_iterate_records([(data_file, data)], data_file.name, make=take_query, known=QUERY_FIELDS))


def collect_rows(
    values: Iterable[tuple[str, object]],
    *,
    id_prefix: str,
    reader: RowReader,
    make: Make[T],
    problems: list[str],
    places: dict[str, str],
    known: Set[str] | None = None,
) -> Iterator[T]:
    """Yield what is made of some records, and add what is wrong with others to ``problems``.

    Args:
        values: Each record with its place, as problems tell it.
        places: The place of each id so far; what is found is added.
        known: The fields that are read; in the end a warning tells of others. Nothing is told where it is absent.
    """
    keys, unread = KeyFinder(), dict[str, None]()
    for number, (place, value) in enumerate(values, start=1):
        faults: list[str] = []
        if known is not None and isinstance(value, Mapping) and not value.keys() <= known:
            unread |= dict.fromkeys(str(one) for one in value if one not in known)
        query = reader.read(value, default_id=f"{id_prefix}-{number:03d}", faults=faults)
        if query is not None:
            if places.setdefault(query.id, place) != place:
                faults.append(f"id {query.id!r} is taken by {places[query.id]}")
            made = make(query, value, faults)
            if words := _find_key(query, made, keys):
                faults.append(f"it holds {words}, and what is read is stored")
            if not faults:
                yield made
        if faults:
            problems.append(f"{place}: {'; '.join(faults)}")
    if unread:
        logger.warning(
            "%s: fields left unread: %s (known: %s). Put what reward functions are to see into an object `metadata`.",
            id_prefix,
            shorten(", ".join(unread)),
            ", ".join(sorted(known or ())),
        )


def _find_key(query: Query, made: object, keys: KeyFinder) -> str:
    """Return which key a record holds, in words; empty where it holds none."""
    texts = [query.id, query.text, *query.values.values()]
    texts.append(query.reference)
    if query.metadata:
        texts.append(json.dumps(query.metadata, ensure_ascii=False))
    if query.history:
        texts += [turn.content for turn in query.history]
    if made is not query:
        # With what stands beside the query: a reference, a response.
        fields = made if isinstance(made, tuple) else vars(made).values()
        texts += [one for one in fields if isinstance(one, str)]
    return next(filter(None, map(keys.find, texts)), "")


def problems_error(name: str, problems: list[str]) -> DatasetError:
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


def _open(source: str | Path, stdin: TextIO | None) -> tuple[list[_Source], str]:
    """Return a dataset's files with their bytes, and its name."""
    if str(source) == "-":
        return _open_stdin(sys.stdin if stdin is None else stdin)
    path = Path(source)
    if os.path.isdir(path):
        return _open_folder(path)
    data, name = _read_bytes(path), _printable(str(path))
    file_format = find_format(path.suffix.lower(), data, name=name)
    return [(_DataFile(name, file_format, id_prefix=_printable(path.stem)), data)], name


def _open_stdin(stdin: TextIO) -> tuple[list[_Source], str]:
    buffer = getattr(stdin, "buffer", None)
    try:
        # Bytes, where there are any: a terminal's encoding would hide what is not UTF-8.
        data = buffer.read() if buffer is not None else stdin.read().encode("utf-8", "surrogatepass")
    except (OSError, ValueError) as error:
        raise DatasetError(f"Standard input cannot be read ({error}): give a file instead of '-'.") from error
    file_format = find_format("", data, name="stdin")
    note = f" (read as {file_format} by its first line; save it as a file to choose)"
    return [(_DataFile("stdin", file_format, id_prefix="stdin"), data)], "stdin" + note


def _open_folder(folder: Path) -> tuple[list[_Source], str]:
    name = _printable(str(folder))
    parts = [
        (data_file._replace(name=os.path.join(name, data_file.name)), _read_bytes(folder / data_file.name))
        for data_file in _PUBLISHED_FILES
        if os.path.lexists(folder / data_file.name)
    ]
    if not parts:
        expected = ", ".join(data_file.name for data_file in _PUBLISHED_FILES)
        raise DatasetError(f"{name} is a folder in which none of {expected} is found: add one, or give a file.")
    return parts, name


def _read_bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        advice = "give a file that exists and that this user may read, or '-' for standard input"
        raise DatasetError(f"{_printable(str(path))} cannot be read ({reason}): {advice}.") from error


def _iterate_records(parts: Iterable[_Source], name: str, *, make: Make[T], known: Set[str]) -> Iterator[T]:
    """Yield what is made of the records of all files; in the end raise one error with every problem in them."""
    problems: list[str] = []
    places: dict[str, str] = {}
    for data_file, data in parts:
        values = ((data_file.name + place, value) for place, value in read_values(data, data_file.format))
        yield from collect_rows(
            values,
            id_prefix=data_file.id_prefix,
            reader=data_file.reader,
            make=make,
            problems=problems,
            places=places,
            # Of the published files each is read as it is known to be.
            known=known if data_file.reader == RowReader() else None,
        )
    if problems:
        raise problems_error(name, problems)
    if not places:
        raise DatasetError(f"{name} is empty: expected at least one query.")


@contextmanager
def without_sweeps() -> Iterator[None]:
    """Let nothing look for reference cycles: records have none, and of a million a third of the time is the search."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _printable(text: str) -> str:
    """Return the text with what UTF-8 cannot hold replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
