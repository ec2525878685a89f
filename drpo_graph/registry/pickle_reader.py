"""The instructions of a pickle, followed as far as they build plain values; nothing is imported or called."""

import io
import pickletools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from drpo_graph.errors import PickleError

_NUMPY = {(f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")} | {("numpy", "dtype")}
_KNOWN_CALLS = {("builtins", "set"), ("builtins", "frozenset"), ("collections", "OrderedDict"), *_NUMPY}
_KNOWN_CALLS |= {("__builtin__", "set"), ("__builtin__", "frozenset")}
_RECONSTRUCTORS = {("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")}
_OBJECT = {("builtins", "object"), ("__builtin__", "object")}
_FORMATS = {
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "i1": "b",
    "u8": "Q",
    "u4": "I",
    "b1": "?",
}

_MAX_BITS = 4096
"""Of a number: longer ones cannot be printed in reasonable time."""
_KEY_LIMIT = 2**32
_MAX_SCALAR = 16
"""Bytes of a NumPy number, and signs of its kind's name."""
_MAX_KEY_LENGTH = 4096
"""Of a text that is a key: equal ones are compared sign by sign each time."""


@dataclass(eq=False, slots=True)
class PickledObject:
    """An object of a class that is known by name alone."""

    module: str
    name: str
    args: tuple[object, ...] = ()
    """What it was made with: a named tuple's fields."""
    state: dict[str, object] = field(default_factory=dict)
    """Its attributes."""


@dataclass(frozen=True, slots=True)
class PickledName:
    """A class or function that the pickle names."""

    module: str
    name: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.module, self.name


class _Mark:
    """Where a group of values begins on the stack."""


_MARK = _Mark()


class PickleReader:
    """Follows a pickle's instructions."""

    def __init__(self, classes: frozenset[tuple[str, str]], *, num_steps: int) -> None:
        self._classes = classes
        self._num_steps = num_steps
        self._num_followed = 0
        self._num_copied = 0
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def read(self, content: bytes) -> object:
        """Return the value that the instructions leave.

        Raises:
            PickleError: they cannot be followed.
        """
        file = io.BytesIO(content)
        try:
            for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if step >= self._num_steps:
                    raise PickleError(f"it has more than {self._num_steps} instructions. Nothing was read.")
                if opcode.name == "STOP":
                    return self._finish()
                self._num_followed = step + 1
                self._follow(opcode.name, argument)
        except PickleError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error, RecursionError) as error:
            # What a damaged file makes of each step is not worth telling apart.
            kind = type(error).__name__
            raise PickleError(f"it is no pickle, or a damaged one ({kind} before byte {file.tell()}).") from error
        raise PickleError("it ends before its value does.")

    def _finish(self) -> object:
        if len(self._stack) != 1 or isinstance(self._stack[0], _Mark | PickledName):
            raise PickleError("it does not end with one value.")
        return self._stack[0]

    def _follow(self, name: str, argument: object) -> None:
        if name in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > _MAX_BITS:
                raise PickleError(f"it holds a number of more than {_MAX_BITS} bits. Nothing was read.")
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _IGNORED:
            raise PickleError(f"it holds an instruction that builds no plain value: {name}. Nothing of it was run.")

    def _copy(self, value: object) -> object:
        """Return a container that is about to be copied.

        What Python writes copies a container once, and fills it with an instruction for each value: whatever copies
        more than that has been made to cost more than its length.

        Raises:
            PickleError: more was copied than there were instructions.
        """
        if isinstance(value, list | tuple | set | frozenset | dict):
            self._num_copied += len(value)
            if self._num_copied > self._num_followed:
                raise PickleError("it copies more values than it has instructions. Nothing was read.")
        return value

    def _pop(self) -> object:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a mark in the place of a value")
        return value

    def _pop_group(self) -> list[object]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                group = self._stack[place + 1 :]
                del self._stack[place:]
                return group
        raise ValueError("no mark")

    def _put(self, index: object) -> None:
        assert isinstance(index, int)
        # Only ever as many as there are instructions: an index is a name here, not a place in an array.
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: object) -> None:
        assert isinstance(index, int)
        self._stack.append(self._memo[index])

    def _mark(self, _: object) -> None:
        self._stack.append(_MARK)

    def _make_list(self, _: object) -> None:
        self._stack.append(self._pop_group())

    def _make_dict(self, _: object) -> None:
        self._stack.append(_pairs(self._pop_group()))

    def _make_tuple(self, _: object) -> None:
        self._stack.append(tuple(self._pop_group()))

    def _make_short_tuple(self, length: int) -> None:
        values = [self._pop() for _ in range(length)]
        self._stack.append(tuple(reversed(values)))

    def _make_frozenset(self, _: object) -> None:
        self._stack.append(frozenset(_check_keys(self._pop_group())))

    def _append(self, values: Sequence[object]) -> None:
        target = self._top(list)
        assert isinstance(target, list)
        target.extend(values)

    def _append_one(self, _: object) -> None:
        self._append([self._pop()])

    def _append_group(self, _: object) -> None:
        self._append(self._pop_group())

    def _set(self, values: dict[object, object]) -> None:
        target = self._top(dict)
        assert isinstance(target, dict)
        target.update(values)

    def _set_one(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._set(_pairs([key, value]))

    def _set_group(self, _: object) -> None:
        self._set(_pairs(self._pop_group()))

    def _add_group(self, _: object) -> None:
        values = self._pop_group()
        target = self._top(set)
        assert isinstance(target, set)
        target.update(_check_keys(values))

    def _top(self, kind: type) -> object:
        target = self._stack[-1]
        if not isinstance(target, kind):
            raise TypeError(f"a {type(target).__name__} in the place of a {kind.__name__}")
        return target

    def _name_global(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self._push_name(module, name)

    def _name_stack_global(self, _: object) -> None:
        name, module = self._pop(), self._pop()
        # Anything else as a text may be longer than any memory.
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a name that is no text")
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        if (module, name) not in self._classes | _KNOWN_CALLS | _RECONSTRUCTORS | _OBJECT:
            named = f"{module[:200]}.{name[:200]}"[:200]
            raise PickleError(
                f"it names {named!r}, which is none of the classes of the published results. Nothing of it was run."
            )
        self._stack.append(PickledName(module, name))

    def _make_object(self, _: object) -> None:
        args, named = self._pop(), self._pop()
        self._stack.append(self._build(named, args))

    def _make_object_with_fields(self, _: object) -> None:
        fields, args, named = self._pop(), self._pop(), self._pop()
        made = self._build(named, args)
        if not isinstance(made, PickledObject) or not isinstance(fields, dict):
            raise TypeError("fields of what is no object")
        self._add_attributes(made, fields)
        self._stack.append(made)

    def _build(self, named: object, args: object) -> object:
        if not isinstance(named, PickledName) or not isinstance(args, tuple):
            raise TypeError("a call of what is no class")
        if named.pair in self._classes or named.pair == ("numpy", "dtype"):
            return PickledObject(named.module, named.name, args)
        made = args[0] if args else None
        if named.pair in _RECONSTRUCTORS and isinstance(made, PickledName) and made.pair in self._classes:
            return PickledObject(made.module, made.name)
        if named.pair in _NUMPY:
            return _read_scalar(args)
        if named.pair in _KNOWN_CALLS and len(args) <= 1:
            return _CALLS[named.name](self._copy(args[0]) if args else ())
        raise TypeError("a call of what makes no value")

    def _set_state(self, _: object) -> None:
        state, target = self._pop(), self._stack[-1]
        if not isinstance(target, PickledObject):
            raise TypeError("a state for what is no object")
        # With slots, a class has two dictionaries.
        parts = state if isinstance(state, tuple) and target.name != "dtype" else (state,)
        if target.name == "dtype":
            target.state["state"] = state
            return
        for part in parts:
            if part is not None:
                self._add_attributes(target, part)

    def _add_attributes(self, target: PickledObject, state: object) -> None:
        self._copy(state)
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise TypeError("a state that names no attributes")
        target.state.update(state)


def _pairs(values: Sequence[object]) -> dict[object, object]:
    return dict(zip(_check_keys(values[::2]), values[1::2], strict=True))


def _check_keys(values: Sequence[object]) -> Sequence[object]:
    """Return the values where they may be keys: numbers can be chosen so that a table of them takes hours to fill."""
    for value in values:
        is_small = isinstance(value, int) and abs(value) < _KEY_LIMIT
        is_short = isinstance(value, str | bytes) and len(value) <= _MAX_KEY_LENGTH
        if not is_small and not is_short and value is not None:
            raise TypeError("a key that is neither a short text nor a small number")
    return values


def _read_list(value: object) -> list[object]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise TypeError("a set of what is no list")
    return list(_check_keys(list(value)))


def _read_ordered(value: object) -> dict[object, object]:
    pairs = value if isinstance(value, list | tuple) else [value]
    flat: list[object] = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise TypeError("a dictionary of what are no pairs")
        flat.extend(pair)
    return _pairs(flat)


def _read_scalar(args: tuple[object, ...]) -> object:
    """Return the number in a NumPy scalar, of which rewards may be made."""
    kind, raw = args
    if not isinstance(kind, PickledObject) or kind.name != "dtype" or not isinstance(raw, bytes | str):
        raise TypeError("a NumPy number without its kind")
    code = kind.args[0]
    if not isinstance(code, str) or max(len(code), len(raw)) > _MAX_SCALAR:
        raise TypeError("a NumPy number of an unknown kind")
    state = kind.state.get("state")
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    form = _FORMATS[code.lstrip("<>|=")]
    # Protocol 2 writes bytes as a text of Latin letters.
    content = raw.encode("latin-1") if isinstance(raw, str) else raw
    (number,) = struct.unpack(f"{'>' if order == '>' else '<'}{form}", content)
    return number


_CALLS: Mapping[str, Callable[[object], object]] = {
    "set": lambda value: set(_read_list(value)),
    "frozenset": lambda value: frozenset(_read_list(value)),
    "OrderedDict": _read_ordered,
}
_VALUES = frozenset(
    {
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "FLOAT",
        "BINFLOAT",
    }
)
_CONSTANTS: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_IGNORED = frozenset({"PROTO", "FRAME"})
_STEPS: Mapping[str, Callable[[PickleReader, object], None]] = {
    "MARK": PickleReader._mark,
    "POP": lambda reader, _: (reader._stack.pop(), None)[1],
    "POP_MARK": lambda reader, _: (reader._pop_group(), None)[1],
    "DUP": lambda reader, _: reader._stack.append(reader._stack[-1]),
    "PUT": PickleReader._put,
    "BINPUT": PickleReader._put,
    "LONG_BINPUT": PickleReader._put,
    "MEMOIZE": PickleReader._memoize,
    "GET": PickleReader._get,
    "BINGET": PickleReader._get,
    "LONG_BINGET": PickleReader._get,
    "LIST": PickleReader._make_list,
    "DICT": PickleReader._make_dict,
    "TUPLE": PickleReader._make_tuple,
    "TUPLE1": lambda reader, _: reader._make_short_tuple(1),
    "TUPLE2": lambda reader, _: reader._make_short_tuple(2),
    "TUPLE3": lambda reader, _: reader._make_short_tuple(3),
    "FROZENSET": PickleReader._make_frozenset,
    "APPEND": PickleReader._append_one,
    "APPENDS": PickleReader._append_group,
    "SETITEM": PickleReader._set_one,
    "SETITEMS": PickleReader._set_group,
    "ADDITEMS": PickleReader._add_group,
    "GLOBAL": PickleReader._name_global,
    "STACK_GLOBAL": PickleReader._name_stack_global,
    "NEWOBJ": PickleReader._make_object,
    "REDUCE": PickleReader._make_object,
    "NEWOBJ_EX": PickleReader._make_object_with_fields,
    "BUILD": PickleReader._set_state,
}
