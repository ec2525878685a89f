"""What ``--warm-start`` names: a file with a prompt, a former run of the checkpoint, a model with a kept prompt."""

import asyncio
from pathlib import Path

from drpo_graph.cli.inputs import read_prompt_file
from drpo_graph.cli.places import DEFAULT_PROMPTS, open_prompts
from drpo_graph.errors import NoRunsError, RunNotFoundError, UsageError
from drpo_graph.records import WarmStart
from drpo_graph.storage.protocols import Storage


def read_warm_start(text: str | None, storage: Storage) -> WarmStart | None:
    """Return what a new run begins with, or ``None`` where it begins anew.

    Args:
        text: A path, or the name of a run or model; a file wins over a run of the same name, a run over a model.
        storage: What keeps the run.

    Raises:
        UsageError: there is none of them, or nothing in it to begin with.
    """
    if text is None:
        return None
    path = Path(text)
    if path.is_file():
        return WarmStart(source=text, system_prompt=read_prompt_file(path))
    found = _find_run(text, storage) or _find_prompt(text)
    if found is None:
        raise UsageError(
            f"--warm-start {text}: expected a file with a prompt, a run of {storage.name}, or a model with a prompt in "
            f"{DEFAULT_PROMPTS}; `drpo runs` and `drpo prompts` list them."
        )
    return found


def _find_prompt(model: str) -> WarmStart | None:
    registry = open_prompts(None)
    found = registry.find(model) if registry is not None else None
    return None if found is None else WarmStart(source=f"the prompt of {model}", system_prompt=found.system_prompt)


def _find_run(thread_id: str, storage: Storage) -> WarmStart | None:
    if not storage.exists():
        return None
    from drpo_graph.runs.warm_start import load_warm_start  # Loads LangGraph.

    try:
        return asyncio.run(load_warm_start(storage, thread_id))
    except (NoRunsError, RunNotFoundError):
        return None
