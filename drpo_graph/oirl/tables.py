"""Tables of demonstrations in files: Parquet and JSON lines, read and written batch by batch."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from io import BytesIO
from itertools import islice
from pathlib import Path

from drpo_graph.data.formats import PARQUET_SUFFIXES, import_arrow
from drpo_graph.display.collection import DEMONSTRATIONS_FILE
from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import (
    BATCH_ROWS,
    COLUMNS,
    REQUIRED_COLUMNS,
    Demonstration,
    Demonstrations,
    TableBuilder,
)
from drpo_graph.safety.private_files import make_private_folder, write_atomically
from drpo_graph.safety.text_files import open_text
from drpo_graph.safety.texts import clean_surrogates, shorten

JSONL_SUFFIX = ".jsonl"
_MODEL = COLUMNS.index("model")
_logger = logging.getLogger(__name__)


def load_demonstrations(sources: Path | str | Sequence[Path | str], *, models: Sequence[str] = ()) -> Demonstrations:
    """Return the rows of some files as one table; a folder stands for the tables in it.

    Args:
        sources: ``.parquet`` or ``.jsonl`` files with the columns ``query``, ``prompt`` and ``outcome``, and those of
            ``model``, ``split``, ``tokens``, ``prompt_name`` and ``confidence`` that are known; a warning tells of
            others, which are left unread.
        models: Keep what these models answered alone.

    Raises:
        DemonstrationsError: a file cannot be read, a column is missing, no row is of a model that is asked for, or rows
            cannot be used.
    """
    builder, present = TableBuilder(), dict.fromkeys(models, False)
    files = list(_find_files([Path(sources)] if isinstance(sources, Path | str) else [Path(one) for one in sources]))
    for path in files:
        builder.begin(str(path))
        batches = _read_parquet(path) if path.suffix.lower() in PARQUET_SUFFIXES else _read_jsonl(path)
        for columns in batches:
            of_rows = [str(one or "") for one in columns[_MODEL]]
            present |= dict.fromkeys(of_rows, True)
            builder.add(columns, kept=[place for place, one in enumerate(of_rows) if one in models] if models else None)
    if not present or not any(present.values()):
        raise DemonstrationsError(f"There are no demonstrations in {', '.join(map(str, files)) or 'no file'}.")
    if absent := [name for name, is_present in present.items() if not is_present]:
        there = ", ".join(repr(name) for name in present if present[name])
        raise DemonstrationsError(f"No demonstration is of {', '.join(absent)}: there are those of {shorten(there)}.")
    return builder.finish()


def save_demonstrations(path: Path | str, rows: Iterable[Demonstration]) -> int:
    """Write rows to a ``.parquet`` or ``.jsonl`` file, replaced in one step, and return how many there were.

    Raises:
        DemonstrationsError: the file cannot be written, or its name says neither form.
    """
    path = Path(path)
    is_parquet = path.suffix.lower() in PARQUET_SUFFIXES
    if not is_parquet and path.suffix.lower() != JSONL_SUFFIX:
        raise DemonstrationsError(f"{path}: expected a name that ends in .parquet or .jsonl.")
    count = _Counted(rows)
    try:
        make_private_folder(path.parent)
        write_atomically(path, [_to_parquet(count)] if is_parquet else _to_lines(count))
    except OSError as error:
        raise DemonstrationsError(
            f"{path} cannot be written ({error.strerror or error}). Name another file."
        ) from error
    return count.num_rows


class _Counted:
    """Rows that are counted as they go by."""

    def __init__(self, rows: Iterable[Demonstration]) -> None:
        self._rows, self.num_rows = rows, 0

    def __iter__(self) -> Iterator[Demonstration]:
        for row in self._rows:
            self.num_rows += 1
            yield row


def _find_files(sources: Sequence[Path]) -> Iterator[Path]:
    suffixes = (*PARQUET_SUFFIXES, JSONL_SUFFIX)
    for source in sources:
        if source.is_dir():
            found = _list_tables(source)
            if not found:
                raise DemonstrationsError(f"{source} holds no table: expected .parquet or .jsonl files in it.")
            yield from found
        elif source.suffix.lower() not in suffixes:
            raise DemonstrationsError(f"{source}: expected a .parquet or .jsonl file, or a folder of them.")
        else:
            yield source


def _list_tables(folder: Path) -> list[Path]:
    if (folder / DEMONSTRATIONS_FILE).is_file():
        # A run's folder: its other tables are no demonstrations.
        return [folder / DEMONSTRATIONS_FILE]
    try:
        return sorted(one for one in folder.iterdir() if one.suffix.lower() in (*PARQUET_SUFFIXES, JSONL_SUFFIX))
    except OSError as error:
        raise DemonstrationsError(f"{folder} cannot be read: {error.strerror or error}.") from error


def _read_parquet(path: Path) -> Iterator[list[list[object]]]:
    pa, parquet = import_arrow(), import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            _check_columns(path, present)
            _tell_unknown(path, present)
            wanted = [name for name in COLUMNS if name in present]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                found = {name: batch.column(name).to_pylist() for name in wanted}
                yield [found.get(name) or [None] * batch.num_rows for name in COLUMNS]
    # A text need not be UTF-8, and a name may stand twice.
    except (OSError, pa.ArrowException, UnicodeDecodeError, KeyError) as error:
        raise DemonstrationsError(f"{path} cannot be read as Parquet: {shorten(str(error))}") from error


def _read_jsonl(path: Path) -> Iterator[list[list[object]]]:
    names: dict[str, None] = {}
    try:
        with open_text(path) as file:
            lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            while batch := list(islice(lines, BATCH_ROWS)):
                rows = [_parse_line(path, number, line) for number, line in batch]
                names |= {name: None for row in rows for name in row}
                yield [[row.get(name) for row in rows] for name in COLUMNS]
    except (OSError, UnicodeError) as error:
        raise DemonstrationsError(f"{path} cannot be read as UTF-8 JSON lines: {shorten(str(error))}") from error
    _tell_unknown(path, names)


def _parse_line(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        # Its own line number is that within this one.
        raise DemonstrationsError(f"{path}:{number}: expected a JSON object: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise DemonstrationsError(f"{path}:{number}: expected a JSON object: {shorten(str(error))}") from error
    if not isinstance(row, dict):
        raise DemonstrationsError(f"{path}:{number}: expected a JSON object, got {shorten(repr(row))}.")
    _check_columns(f"{path}:{number}", list(row))
    return row


def _check_columns(place: object, present: Sequence[str]) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in present]
    if missing:
        got = shorten(", ".join(present)) or "nothing"
        raise DemonstrationsError(f"{place}: no column {', '.join(missing)} (got {got}).")


def _tell_unknown(path: Path, present: Iterable[str]) -> None:
    unknown = [name for name in present if name not in COLUMNS]
    if unknown:
        known = ", ".join(COLUMNS)
        _logger.warning("%s: columns left unread: %s (known: %s).", path, shorten(", ".join(unknown)), known)


def _to_lines(rows: Iterable[Demonstration]) -> Iterator[bytes]:
    for row in rows:
        known = {name: value for name, value in row._asdict().items() if value not in (None, "")}
        yield (json.dumps(known, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _to_parquet(rows: Iterable[Demonstration]) -> bytes:
    pa, parquet = import_arrow(), import_module("pyarrow.parquet")
    kinds = {str: pa.string(), float: pa.float64()}
    texts = ("query", "prompt", "model", "split", "prompt_name")
    schema = pa.schema([(name, kinds[str] if name in texts else kinds[float]) for name in COLUMNS])
    buffer, waiting = BytesIO(), iter(rows)
    with parquet.ParquetWriter(buffer, schema, compression="zstd") as writer:
        while batch := list(islice(waiting, BATCH_ROWS)):
            # A lone surrogate, which JSON may bring, has no UTF-8.
            clean = [[clean_surrogates(one) if isinstance(one, str) else one for one in row] for row in batch]
            writer.write_table(pa.table([list(column) for column in zip(*clean, strict=True)], schema=schema))
    return buffer.getvalue()
