"""The files of a run over ICL examples."""

import json
from pathlib import Path

from drpo_graph.records import ICLResult
from drpo_graph.runs.files import RESULT_FILE, RUN_FILE, advise_resume, write_files
from drpo_graph.storage.run_list import RunRecord


def write_examples(folder: Path, result: ICLResult) -> list[Path]:
    """Write a finished run's examples, in the published form, and its result; return the files' paths.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    return write_files(folder, result_files(result), advice=advise_resume(result.thread_id))


def write_stored_examples(folder: Path, record: RunRecord, result: ICLResult | None) -> list[Path]:
    """Write what a checkpoint holds of a run over ICL examples, finished or not, and return the files' paths.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    contents = {} if result is None else result_files(result)
    contents[RUN_FILE] = _to_json(record.model_dump(mode="json"))
    return write_files(folder, contents, advice="Give another one with --output.")


def result_files(result: ICLResult) -> dict[str, bytes]:
    """Return a finished run's files: the examples in the published form, and the result."""
    pairs = {one.query: one.response for one in result.examples}
    contents: dict[str, object] = {result.published_name: pairs, RESULT_FILE: result.model_dump(mode="json")}
    return {name: _to_json(content) for name, content in contents.items()}


def _to_json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
