"""Tables of demonstrations in files: Parquet and JSON lines, read and written batch by batch."""

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from io import BytesIO
from itertools import islice
from pathlib import Path
from types import ModuleType

from drpo_graph.errors import DemonstrationsError, UsageError
from drpo_graph.oirl.demonstrations import COLUMNS, REQUIRED_COLUMNS, Demonstration, Demonstrations, TableBuilder
from drpo_graph.safety.private_files import make_private_folder, write_atomically
from drpo_graph.safety.texts import clean_surrogates, shorten

PARQUET_SUFFIXES = (".parquet", ".pq")
JSONL_SUFFIX = ".jsonl"
_BATCH_ROWS = 65_536


def load_demonstrations(sources: Path | Sequence[Path], *, models: Sequence[str] = ()) -> Demonstrations:
    """Return the rows of some files as one table; a folder stands for the tables in it.

    Args:
        sources: ``.parquet`` or ``.jsonl`` files with the columns ``query``, ``prompt`` and ``outcome``, and those of
            ``model``, ``split``, ``tokens``, ``prompt_name`` and ``confidence`` that are known; others are left unread.
        models: Keep what these models answered alone.

    Raises:
        DemonstrationsError: a file cannot be read, a column is missing, or rows cannot be used.
    """
    builder = TableBuilder()
    for path in _find_files([sources] if isinstance(sources, Path) else sources):
        builder.begin(str(path))
        batches = _read_parquet(path) if path.suffix.lower() in PARQUET_SUFFIXES else _read_jsonl(path)
        for columns in batches:
            builder.add(columns if not models else _keep_models(columns, models))
    if models and builder.is_empty:
        raise DemonstrationsError(f"No demonstration is of {', '.join(models)}: leave out the choice of models.")
    return builder.finish()


def save_demonstrations(path: Path, rows: Iterable[Demonstration]) -> int:
    """Write rows to a ``.parquet`` or ``.jsonl`` file, replaced in one step, and return how many there were.

    Raises:
        DemonstrationsError: the file cannot be written, or its name says neither form.
    """
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
            found = sorted(one for one in source.iterdir() if one.suffix.lower() in suffixes)
            if not found:
                raise DemonstrationsError(f"{source} holds no table: expected .parquet or .jsonl files in it.")
            yield from found
        elif source.suffix.lower() not in suffixes:
            raise DemonstrationsError(f"{source}: expected a .parquet or .jsonl file, or a folder of them.")
        else:
            yield source


def _read_parquet(path: Path) -> Iterator[list[list[object]]]:
    pa, parquet = _import_arrow(), import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            _check_columns(path, present)
            wanted = [name for name in COLUMNS if name in present]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                found = {name: batch.column(name).to_pylist() for name in wanted}
                yield [found.get(name) or [None] * batch.num_rows for name in COLUMNS]
    except (OSError, pa.ArrowException) as error:
        raise DemonstrationsError(f"{path} cannot be read as Parquet: {shorten(str(error))}") from error


def _read_jsonl(path: Path) -> Iterator[list[list[object]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            while batch := list(islice(lines, _BATCH_ROWS)):
                rows = [_parse_line(path, number, line) for number, line in batch]
                yield [[row.get(name) for row in rows] for name in COLUMNS]
    except (OSError, UnicodeDecodeError) as error:
        raise DemonstrationsError(f"{path} cannot be read as UTF-8 JSON lines: {shorten(str(error))}") from error


def _parse_line(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
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


def _keep_models(columns: list[list[object]], models: Sequence[str]) -> list[list[object]]:
    kept = [place for place, model in enumerate(columns[COLUMNS.index("model")]) if (model or "") in models]
    return [[column[place] for place in kept] for column in columns]


def _to_lines(rows: Iterable[Demonstration]) -> Iterator[bytes]:
    for row in rows:
        known = {name: value for name, value in row._asdict().items() if value not in (None, "")}
        yield (json.dumps(known, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _to_parquet(rows: Iterable[Demonstration]) -> bytes:
    pa, parquet = _import_arrow(), import_module("pyarrow.parquet")
    kinds = {str: pa.string(), float: pa.float64()}
    texts = ("query", "prompt", "model", "split", "prompt_name")
    schema = pa.schema([(name, kinds[str] if name in texts else kinds[float]) for name in COLUMNS])
    buffer, waiting = BytesIO(), iter(rows)
    with parquet.ParquetWriter(buffer, schema, compression="zstd") as writer:
        while batch := list(islice(waiting, _BATCH_ROWS)):
            # A lone surrogate, which JSON may bring, has no UTF-8.
            clean = [[clean_surrogates(one) if isinstance(one, str) else one for one in row] for row in batch]
            writer.write_table(pa.table([list(column) for column in zip(*clean, strict=True)], schema=schema))
    return buffer.getvalue()


def _import_arrow() -> ModuleType:
    try:
        return import_module("pyarrow")
    except ImportError as error:
        raise UsageError("Parquet needs the extra `oirl`. Run: pip install 'drpo-graph[oirl]'.") from error
