"""Read a foreign pickle as data: nothing that it names is imported, called or changed.

Python's own unpickler is a machine that runs what the file says. Here its instructions are read one by one, and only
those that build plain values are followed. The classes of the published results come back as :class:`PickledObject`;
any other class or function is refused by name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drpo_graph.errors import PickleError
from drpo_graph.registry.pickle_reader import PickledName, PickledObject, PickleReader

PUBLISHED_CLASSES: Final = frozenset(
    {
        ("reasoner.search_algo.beam_search", "BeamSearchResult"),
        ("reasoner.search_algo.beam_search", "BeamSearchNode"),
        ("prompt_align.world_model", "SubResult"),
    }
)
"""What the published results are made of."""


@dataclass(frozen=True, slots=True)
class PickleLimits:
    """How much a pickle may ask for."""

    num_bytes: int = 64 * 2**20
    num_steps: int = 5_000_000
    """Instructions."""
    depth: int = 500
    """Values inside each other."""
    num_values: int = 5_000_000
    """Values when shared ones are counted wherever they are used: what a program that walks them all would see."""


def load_pickle_file(path: Path, *, limits: PickleLimits | None = None) -> object:
    """Return what a pickle file holds, as plain values and :class:`PickledObject`.

    Raises:
        PickleError: it cannot be read, is damaged, names what is not allowed, or asks for too much.
    """
    limits = limits or PickleLimits()
    try:
        with path.open("rb") as file:
            content = file.read(limits.num_bytes + 1)
    except OSError as error:
        raise PickleError(f"Pickle {path}: {error.strerror or error}.") from error
    try:
        return load_pickle(content, limits=limits)
    except PickleError as error:
        raise PickleError(f"Pickle {path}: {error}") from error


def load_pickle(
    content: bytes,
    *,
    limits: PickleLimits | None = None,
    classes: frozenset[tuple[str, str]] = PUBLISHED_CLASSES,
) -> object:
    """Return what a pickle holds, as plain values and :class:`PickledObject`.

    Args:
        content: The pickle.
        limits: How much it may ask for.
        classes: Module and name of the classes that may occur beside plain values.

    Raises:
        PickleError: it is damaged, names what is not allowed, or asks for too much.
    """
    limits = limits or PickleLimits()
    if len(content) > limits.num_bytes:
        raise PickleError(f"it is larger than {limits.num_bytes} bytes. Nothing was read.")
    value = PickleReader(classes, num_steps=limits.num_steps).read(content)
    _measure(value, limits)
    return value


def _measure(root: object, limits: PickleLimits) -> None:
    """Do nothing when a value is no deeper and, with shared parts unfolded, no larger than allowed.

    Raises:
        PickleError: it is.
    """
    sizes: dict[int, tuple[int, int]] = {}
    """Depth and number of values, by identity; (0, 0) while it is being measured: a cycle counts once."""
    stack: list[tuple[object, bool]] = [(root, False)]
    while stack:
        value, is_left = stack.pop()
        # A shared value is looked up wherever it is used, and listed once.
        if not is_left and id(value) in sizes:
            continue
        inside = _inside(value)
        if is_left:
            measured = [sizes.get(id(one), (1, 1)) for one in inside]
            depth, num_values = 1 + max(one for one, _ in measured), 1 + sum(one for _, one in measured)
            if depth > limits.depth:
                raise PickleError(f"its values are nested deeper than {limits.depth}. Nothing was read.")
            if num_values > limits.num_values:
                raise PickleError(f"it unfolds to more than {limits.num_values} values. Nothing was read.")
            sizes[id(value)] = (depth, num_values)
        elif inside:
            sizes[id(value)] = (0, 0)
            stack.append((value, True))
            stack.extend((one, False) for one in inside)


def _inside(value: object) -> list[object]:
    if isinstance(value, PickledName):
        raise PickleError(f"it holds the class {value.name!r} in the place of a value.")
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return [value.args, value.state] if isinstance(value, PickledObject) else []
