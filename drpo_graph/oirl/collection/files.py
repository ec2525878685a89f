"""The files of a collection."""

import json
from importlib.util import find_spec
from pathlib import Path

from drpo_graph.data.formats import PARQUET_SUFFIXES
from drpo_graph.display.collection import DEMONSTRATIONS_FILE
from drpo_graph.errors import CheckpointError, DemonstrationsError, UsageError
from drpo_graph.oirl.collection.tallies import Collected, collect_rows
from drpo_graph.oirl.tables import JSONL_SUFFIX, save_demonstrations
from drpo_graph.records import CollectionResult
from drpo_graph.runs.files import RESULT_FILE, RUN_FILE, advise_resume, write_files
from drpo_graph.safety.installing import tell_install
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.protocols import Storage
from drpo_graph.storage.run_list import RunRecord

UNLABELLED_FILE = "unlabelled.jsonl"
_EXPORT_ADVICE = "Give another one with --output."


def check_output(path: Path) -> None:
    """Do nothing where demonstrations can go to a file of this name.

    Raises:
        DemonstrationsError: its name says neither form, or it is a folder.
        UsageError: it is Parquet, and the extra for that is not installed.
    """
    if path.suffix.lower() not in (*PARQUET_SUFFIXES, JSONL_SUFFIX) or path.is_dir():
        raise DemonstrationsError(f"{path}: expected the name of a file that ends in .parquet or .jsonl.")
    if path.suffix.lower() in PARQUET_SUFFIXES and find_spec("pyarrow") is None:
        raise UsageError(f"Parquet needs the extra `oirl`. Run: {tell_install('oirl')}.")


def write_collection(
    folder: Path, result: CollectionResult, collected: Collected, *, has_own_place: bool
) -> list[Path]:
    """Write a finished run's files and return their paths; its demonstrations may have a place of their own.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    contents = {RESULT_FILE: _to_json(result.model_dump(mode="json")), **_list_unlabelled(collected)}
    written = write_files(folder, contents, advice=advise_resume(result.thread_id))
    return written if has_own_place else [_write_rows(folder, collected), *written]


async def write_stored_collection(
    storage: Storage, folder: Path, record: RunRecord, result: CollectionResult | None
) -> list[Path]:
    """Write what a checkpoint holds of a collection, finished or not, and return the files' paths.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    async with storage.open_for_reading() as reader:
        collected = await collect_rows(Archive(reader.store, record.thread_id))
    contents = {RUN_FILE: _to_json(record.model_dump(mode="json")), **_list_unlabelled(collected)}
    if result is not None:
        contents[RESULT_FILE] = _to_json(result.model_dump(mode="json"))
    written = write_files(folder, contents, what="Folder", advice=_EXPORT_ADVICE)
    return [_write_rows(folder, collected), *written]


def _write_rows(folder: Path, collected: Collected) -> Path:
    path = folder / DEMONSTRATIONS_FILE
    try:
        save_demonstrations(path, collected.demonstrations)
    except DemonstrationsError as error:
        raise CheckpointError(str(error)) from error
    return path


def _list_unlabelled(collected: Collected) -> dict[str, bytes]:
    if not collected.unlabelled:
        return {}
    lines = (json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in collected.unlabelled)
    return {UNLABELLED_FILE: "".join(lines).encode("utf-8", "backslashreplace")}


def _to_json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
