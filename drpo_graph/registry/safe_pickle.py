"""Read a foreign pickle as data: nothing that it names is imported, called or changed.

Python's own unpickler reads it, and gets inert classes of ours for those of the published results; any other name is
refused. Before it begins, the instructions are looked through for what would cost more than the file's length.
"""

import io
import itertools
import pickle
from pathlib import Path
from pickletools import OpcodeInfo, StackObject, genops, markobject
from typing import Final, Self

from drpo_graph.errors import PickleError

_MAX_DEPTH: Final = 500
_TOO_DEEP: Final = f"its values are nested deeper than {_MAX_DEPTH}. Nothing was read."
_MAX_VALUES: Final = 5_000_000
"""When shared ones are counted wherever they are used: what a program that walks them all would see."""
_MAX_ARGS: Final = 16
"""Of an object: they are copied for each, and one tuple may serve many."""
_MAX_BITS: Final = 4096
"""Of a number: longer ones cannot be printed in reasonable time."""
_KEY_KINDS: Final = {"int", "int_or_bool", "bool", "bytes", "bytes_or_str", "str", "None"}
_KEYS: Final = {
    "SETITEM": slice(1, 2),
    "SETITEMS": slice(1, None, 2),
    "DICT": slice(0, None, 2),
    "ADDITEMS": slice(1, None),
    "FROZENSET": slice(0, None),
}
"""Which of the values that an instruction takes become keys."""
_REFUSED: Final = {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
_DAMAGES: Final = (pickle.PickleError, ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError)
"""What a damaged file makes of each step is not worth telling apart."""


class PickledObject:
    """An object of a class that is known by name alone."""

    __slots__ = ("args", "state")
    args: tuple[object, ...]
    """What it was made with: a named tuple's fields."""
    state: object
    """Its attributes."""

    def __new__(cls, *args: object) -> Self:
        if len(args) > _MAX_ARGS:
            raise TypeError("an object of too many parts")
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    # Without it, the unpickler would set whatever attributes a file names, of these objects and of their classes.
    def __setstate__(self, state: object) -> None:
        self.state = state

    @property
    def name(self) -> str:
        return type(self).__name__


_CLASSES: Final[dict[tuple[str, str], type]] = {
    (module, name): type(name, (PickledObject,), {"__slots__": ()})
    for module, name in (
        ("reasoner.search_algo.beam_search", "BeamSearchResult"),
        ("reasoner.search_algo.beam_search", "BeamSearchNode"),
        ("prompt_align.world_model", "SubResult"),
        # Rewards may be numbers of NumPy.
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
    )
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> type:
        if (module, name) not in _CLASSES:
            named = f"{module[:200]}.{name[:200]}"[:200]
            raise PickleError(
                f"it names {named!r}, which is none of the classes of the published results. Nothing of it was run."
            )
        return _CLASSES[module, name]


def load_pickle_file(path: Path, *, max_bytes: int = 64 * 2**20) -> object:
    """Return what a pickle file holds, as plain values and :class:`PickledObject`.

    Raises:
        PickleError: it cannot be read, is damaged, names what is not allowed, or asks for too much.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise PickleError(f"it is larger than {max_bytes} bytes. Nothing was read.")
        return load_pickle(content)
    except OSError as error:
        raise PickleError(f"Pickle {path}: {error.strerror or error}.") from error
    except PickleError as error:
        raise PickleError(f"Pickle {path}: {error}") from error


def load_pickle(content: bytes, *, max_steps: int = 5_000_000) -> object:
    """Return what a pickle of at most so many instructions holds, as plain values and :class:`PickledObject`.

    Raises:
        PickleError: it is damaged, names what is not allowed, or asks for too much.
    """
    file = io.BytesIO(content)
    try:
        _check_steps(file, max_steps)
        file.seek(0)
        value: object = _DataUnpickler(file, encoding="latin-1").load()
        _measure(value, {})
    except RecursionError as error:
        raise PickleError(_TOO_DEEP) from error
    except _DAMAGES as error:
        kind = type(error).__name__
        raise PickleError(f"it is no pickle, or a damaged one ({kind} before byte {file.tell()}).") from error
    return value


def _check_steps(file: io.BytesIO, max_steps: int) -> None:
    """Do nothing when following the instructions costs no more than their length; frames are overwritten.

    Raises:
        PickleError: it would.
    """
    stack: list[bool] = []
    """Whether each value may be a key."""
    marks: list[int] = []
    memo: dict[object, bool] = {}
    for step, (opcode, argument, position) in enumerate(genops(file)):
        if step >= max_steps:
            raise PickleError(f"it has more than {max_steps} instructions. Nothing was read.")
        if opcode.name in _REFUSED or opcode.proto > 4:
            told = f"that builds no plain value: {opcode.name} at byte {position}"
            raise PickleError(f"it holds an instruction {told}. Nothing of it was run.")
        if isinstance(argument, int) and argument.bit_length() > _MAX_BITS:
            raise PickleError(f"it holds a number of more than {_MAX_BITS} bits at byte {position}. Nothing was read.")
        if opcode.name == "STOP" and (len(stack) != 1 or marks):
            raise PickleError("it does not end with one value.")
        if opcode.name == "FRAME" and position is not None:
            # Readers differ in what they make of an instruction across a frame's end. Three times push and pop.
            file.seek(position)
            file.write(b"K\x000" * 3)
        elif opcode.name == "MEMOIZE" or opcode.name.endswith("PUT"):
            # The memo is an array: a place far out would take the memory of all before it.
            if argument is not None and argument > step:
                raise ValueError("a place in the memo that no writer chooses")
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif opcode.name.endswith("GET"):
            stack.append(memo[argument])
        else:
            keys = _follow(opcode, argument, stack=stack, marks=marks)
            if not all(keys):
                told = f"neither a short text nor a small number, before byte {file.tell()}"
                raise PickleError(f"it has a key that is {told}. Nothing was read.")


def _follow(opcode: OpcodeInfo, argument: object, *, stack: list[bool], marks: list[int]) -> list[bool]:
    """Take from a stack what an instruction takes, put there what it puts, and return what becomes keys."""
    before = opcode.stack_before
    if opcode.name == "MARK":
        marks.append(len(stack))
        return []
    if opcode.name == "POP" and marks and marks[-1] == len(stack):
        marks.pop()
        return []
    is_group = markobject in before
    first = marks.pop() - before.index(markobject) if is_group else len(stack) - len(before)
    if first < (marks[-1] if marks else 0):
        raise IndexError("fewer values than it takes")
    keys = stack[first:][_KEYS.get(opcode.name, slice(0))]
    stack[first:] = [_may_be_key(kind, argument) for kind in opcode.stack_after]
    return keys


def _may_be_key(kind: StackObject, argument: object) -> bool:
    # A table of numbers that were chosen for it takes hours to fill; equal texts are compared sign by sign each time.
    is_small = not isinstance(argument, int) or abs(argument) < 2**32
    is_short = not isinstance(argument, str | bytes) or len(argument) <= 4096
    return kind.name in _KEY_KINDS and is_small and is_short


def _measure(value: object, sizes: dict[int, tuple[int, int]], *, level: int = 1) -> tuple[int, int]:
    """Return how deep a value is, and of how many it consists when shared ones are unfolded.

    Args:
        sizes: What was found, by identity: (0, 0) while a value is being measured, so that a cycle counts once.

    Raises:
        PickleError: too deep, too many, or a class.
    """
    if isinstance(value, type):
        raise PickleError(f"it holds the class {value.__name__!r} in the place of a value.")
    if level > _MAX_DEPTH:
        raise PickleError(_TOO_DEEP)
    if id(value) in sizes:
        return sizes[id(value)]
    inside = [value.args, value.state] if isinstance(value, PickledObject) else value
    if not inside or not isinstance(inside, dict | list | tuple | set | frozenset):
        return 1, 1
    depth, num_values = 1, 1
    sizes[id(value)] = (0, 0)
    for one in itertools.chain(inside, inside.values() if isinstance(inside, dict) else ()):
        inner_depth, inner_values = _measure(one, sizes, level=level + 1)
        depth, num_values = max(depth, 1 + inner_depth), num_values + inner_values
    if depth > _MAX_DEPTH:
        raise PickleError(_TOO_DEEP)
    if num_values > _MAX_VALUES:
        raise PickleError(f"it unfolds to more than {_MAX_VALUES} values. Nothing was read.")
    sizes[id(value)] = (depth, num_values)
    return sizes[id(value)]
