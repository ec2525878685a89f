"""``drpo import traces``: what an app was asked, from the traces that a service keeps of it, as a dataset."""

import json
import sys
from pathlib import Path
from typing import Final

import typer

from drpo_graph.data.datasets import MAX_PRINTED_PROBLEMS
from drpo_graph.data.traces import ImportedTraces, import_traces
from drpo_graph.display.streams import write_lines
from drpo_graph.errors import CheckpointError, DatasetError, UsageError
from drpo_graph.safety.private_files import write_atomically
from drpo_graph.safety.terminal import inert
from drpo_graph.safety.text_files import read_bytes

_MAX_LINE: Final = 2000


def write_traces(path: Path, output: Path | None, *, max_rating: float | None, failed_only: bool) -> None:
    """Write the dataset of a file of traces, and tell what was left out.

    Raises:
        UsageError: there is no other file to write to, or nothing to write.
        CheckpointError: it cannot be written, or some records cannot be used; the others are written then.
    """
    if output is None:
        raise UsageError("drpo import traces: say with --output where the queries go, e.g. --output queries.jsonl.")
    if output.resolve() == path.resolve():
        raise UsageError(f"--output {output} is the file that is read. Give another one.")
    try:
        data = read_bytes(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error}): give a file of traces.") from error
    found = import_traces(data, name=str(path), suffix=path.suffix, max_rating=max_rating, failed_only=failed_only)
    for fault in found.faults[:MAX_PRINTED_PROBLEMS]:
        typer.echo(inert(fault, max_chars=_MAX_LINE), err=True)
    if len(found.faults) > MAX_PRINTED_PROBLEMS:
        typer.echo(f"... and {len(found.faults) - MAX_PRINTED_PROBLEMS} more", err=True)
    if not found.rows:
        raise DatasetError(f"{path}: no query to write. {_describe(found)}.")
    lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in found.rows)
    try:
        write_atomically(output, lines)
    except OSError as error:
        raise CheckpointError(f"File {output}: {error.strerror or error}. Give another one with --output.") from error
    write_lines(sys.stdout, inert(f"{output}: {_describe(found)}", max_chars=_MAX_LINE))
    if found.faults:
        raise CheckpointError(f"{len(found.faults)} of {found.num_records} records were not imported.")


def _describe(found: ImportedTraces) -> str:
    """Return how many records there are, and what became of each."""
    counts = {
        "inside of other runs": found.num_inner,
        "asked before": found.num_repeated,
        "not failed or rated so": found.num_unwanted,
        "that cannot be used": len(found.faults),
    }
    left_out = [f"{number} {what}" for what, number in counts.items() if number]
    told = f"{len(found.rows)} {'query' if len(found.rows) == 1 else 'queries'} from {found.num_records} records"
    return f"{told}; left out: {', '.join(left_out)}" if left_out else told
