"""What a run that its budget stopped has found so far: told with the error, and written to the run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from drpo_graph.calls.budget import Budget
from drpo_graph.calls.ledger import Ledger
from drpo_graph.errors import BudgetSpentError, CheckpointError
from drpo_graph.evidence import NOT_COMPARED
from drpo_graph.records import RunResult
from drpo_graph.runs.files import PROMPT_FILE, write_result_files
from drpo_graph.search.results import choose_delivered, make_result
from drpo_graph.search.reviews import keep_unvetoed
from drpo_graph.search.state import SearchState
from drpo_graph.settings.settings import Settings
from drpo_graph.stop import StopSignal
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.tree import load_tree


async def tell_standing(
    error: BudgetSpentError, values: Mapping[str, Any], archive: Archive, *, settings: Settings, folder: Path | None
) -> None:
    """Add to the error what was found, and write the run's files as if it had ended here.

    Resuming reads none of them, and replaces them. There is no folder where the run has none, or where its files would
    lay open what is sealed.
    """
    result = await find_standing(values, archive, settings)
    if result is None:
        error.add("The initial prompt is not scored yet.")
        return
    reward = "unscored" if result.path_reward is None else f"{result.path_reward:.2f}"
    told = f"Best so far: {result.candidate_id} at {reward}, after {result.depth} levels"
    if result.evidence == "not_compared":
        told = f"{told}, {NOT_COMPARED}"
    if folder is None:
        error.add(f"{told}.")
        return
    try:
        write_result_files(folder, result, await load_tree(archive))
        error.add(f"{told}, in {folder / PROMPT_FILE}.")
    except CheckpointError as problem:
        # The budget is why the run stops; that its files could not be written is told beside it.
        error.add(f"{told}. {problem}")


async def find_standing(values: Mapping[str, Any], archive: Archive, settings: Settings) -> RunResult | None:
    """Return what a run has found by its last scored level, or ``None`` before its first."""
    if not values.get("beam"):
        return None
    ledger = Ledger(archive, StopSignal(), Budget(settings))
    await ledger.load()
    state = cast(SearchState, values)
    beam = await keep_unvetoed(archive, state["beam"])
    best_id = await choose_delivered(archive, beam, is_compat=settings.is_compat)
    return await make_result(archive, ledger, state, delivered_id=best_id, validation=None, status="interrupted")
