"""Prompts out of the published results, and out of our own run folders: read as data, whatever the files say."""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Final

from drpo_graph.errors import UsageError
from drpo_graph.records import metric_key
from drpo_graph.registry.safe_pickle import PickledObject, load_pickle_file
from drpo_graph.safety.text_files import to_utf8

OUTPUT_NAMES: Final = ("output.pkl", "output.json", "output.txt")
"""What holds a prompt in a folder, the first one found."""

MAPPING_NAME: Final = "model_mapping.json"
"""What the published mapping is called."""

_INNER_FOLDERS: Final = (".", "algo_output")
_MAX_BYTES: Final = 64 * 2**20
_LEVEL: Final = re.compile(r"level ([0-9]{1,9})")
_NUM_RESULT_FIELDS: Final = 4


def read_published_prompt(path: Path) -> str:
    """Return the prompt that a result holds, without surrounding white space; nothing of a pickle is executed.

    Args:
        path: An ``output.pkl``, ``output.json`` or ``output.txt``, or a folder with one.

    Raises:
        UsageError: there is none, or it cannot be read as one.
    """
    path = _find_output(path) if path.is_dir() else path
    if path.suffix == ".pkl":
        prompt = _prompt_of_pickle(load_pickle_file(_require_file(path)))
    elif path.suffix == ".json":
        prompt = _prompt_of_levels(_read_json(path))
    elif path.suffix == ".txt":
        prompt = _read_text(path)
    else:
        raise UsageError(f"Result {path}: a .pkl, .json or .txt file was expected, or a folder with one.")
    if prompt is None or not prompt.strip():
        raise UsageError(f"Result {path}: it holds no prompt. Give another of {', '.join(OUTPUT_NAMES)}.")
    return prompt.strip()


def is_model_mapping(path: Path) -> bool:
    """Return whether a file maps model names to results.

    Raises:
        UsageError: it is a JSON file that cannot be read.
    """
    if path.suffix != ".json":
        return False
    content = _read_json(path)
    if not isinstance(content, dict):
        return False
    # One entry that is wrong makes it no less a mapping.
    return path.name == MAPPING_NAME or any(isinstance(one, str) for one in content.values())


def read_model_mapping(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the prompts that a mapping leads to, by model, and what is wrong with the rest, a line each.

    A target is looked for from the parent of the mapping's folder, as published, then from the folder itself, then
    there without its own first folder: the published ``data`` may have another name.

    Raises:
        UsageError: the file is no mapping.
    """
    content = _read_json(path)
    if not isinstance(content, dict):
        raise UsageError(f'Mapping {path}: an object was expected, e.g. {{"MODEL": "./data/NAME/output.pkl"}}.')
    prompts: dict[str, str] = {}
    faults: list[str] = []
    for model, target in content.items():
        try:
            prompts[model] = read_published_prompt(_find_target(path.absolute().parent, target))
        except UsageError as error:
            faults.append(f"{model}: {error}")
    return prompts, tuple(faults)


def _find_target(folder: Path, target: object) -> Path:
    if not isinstance(target, str) or not target or "\0" in target:
        raise UsageError("the mapping gives no path. Give that of its result.")
    parts = PurePosixPath(target).parts
    if PurePosixPath(target).is_absolute() or ".." in parts:
        raise UsageError(f"{target!r} leads out of the mapping's folder. Import that file by itself, with --model.")
    tried = [(folder.parent, parts), (folder, parts), (folder, parts[1:])]
    for base, inner in tried:
        place = base.joinpath(*inner)
        if place == folder or not _exists(place):
            continue
        # What is in a folder may be a link, too.
        place = _find_output(place) if place.is_dir() else place
        if not place.resolve().is_relative_to(base.resolve()):
            raise UsageError(f"{target!r} leads by a link out of {base}. Import that file by itself, with --model.")
        return place
    near = next((one for base, inner in tried for one in _find_alike(base.joinpath(*inner))), None)
    hint = "" if near is None else f" There is {near.parent.name!r}: import {near} by itself, with --model."
    raise UsageError(f"{target!r} is missing beside {folder}. Put it there, or correct the mapping.{hint}")


def _find_alike(path: Path) -> list[Path]:
    """Return what a path may have meant: a file in a folder whose name differs in spaces, signs and case alone."""
    wanted = metric_key(path.parent.name)
    try:
        folders = sorted(path.parent.parent.iterdir())
    except OSError:
        return []
    return [one / path.name for one in folders if metric_key(one.name) == wanted and _exists(one / path.name)]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # Among others, a name that is too long.
        return False


def _find_output(folder: Path) -> Path:
    for inner in _INNER_FOLDERS:
        for name in OUTPUT_NAMES:
            if (folder / inner / name).is_file():
                return folder / inner / name
    raise UsageError(f"Folder {folder}: one of {', '.join(OUTPUT_NAMES)} was expected. Give the folder of a result.")


def _require_file(path: Path) -> Path:
    # A pipe would hold the reader up for good.
    if not path.is_file():
        raise UsageError(f"Result {path}: there is no such file. Give that of a result, or its folder.")
    return path


def _read_text(path: Path) -> str:
    try:
        with _require_file(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = to_utf8(content).decode()
    except OSError as error:
        raise UsageError(f"Result {path}: {error.strerror or error}. Give a file that can be read.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"Result {path}: it is not in UTF-8. Convert it first.") from error
    if len(content) > _MAX_BYTES:
        raise UsageError(f"Result {path}: it is larger than {_MAX_BYTES} bytes. Give the prompt in an output.txt.")
    return text


def _read_json(path: Path) -> object:
    text = _read_text(path)
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"Result {path}: it is no JSON ({error}). Mend it, or give another file.") from error
    return content


def _prompt_of_levels(content: object) -> str | None:
    """Return the last level's prompt."""
    if not isinstance(content, dict):
        return None
    levels = {int(match[1]): one for name, one in content.items() if (match := _LEVEL.fullmatch(name))}
    last = levels[max(levels)] if levels else None
    return _text(last.get("Prompt")) if isinstance(last, dict) else None


def _prompt_of_pickle(content: object) -> str | None:
    """Return the prompt at the end of the path to the best one, or what our own runs deliver."""
    if isinstance(content, dict):
        result = content.get("result")
        return _text(result.get("system_prompt")) if isinstance(result, dict) else None
    if not isinstance(content, PickledObject) or content.name != "BeamSearchResult":
        return None
    trace = content.args[-1] if len(content.args) == _NUM_RESULT_FIELDS else None
    last = trace[-1] if isinstance(trace, list) and trace else None
    return _text(last[0]) if isinstance(last, tuple) and last else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
