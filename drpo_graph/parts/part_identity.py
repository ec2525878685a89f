"""What tells one part of the user's own from another: what it says of itself, else its parameters and its code.

Code is compared under one version of Python alone, whose bytecode it is. Of a function, its own code counts, with what
it closes over and its defaults; of an object, its ``identity``, or a dataclass's fields. What they call does not.
"""

import dis
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType, MethodType

from pydantic import JsonValue

from drpo_graph.parts.given_parts import FunctionPart
from drpo_graph.parts.identity import name_of, stored_name
from drpo_graph.parts.responders import OnePromptOfApp
from drpo_graph.parts.rewards import MixedReward, NamedReward
from drpo_graph.records import Record, digest_json

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def describe_part(part: object) -> JsonValue:
    """Return what identifies a part, or a value that belongs to one, as JSON: alike in every process."""
    return _describe(part, ())


def _describe(value: object, inside: tuple[int, ...]) -> JsonValue:
    if id(value) in inside:
        return "itself"
    inside = (*inside, id(value))
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return [type(value).__name__, repr(value)]
    if isinstance(value, list | tuple):
        return [_describe(one, inside) for one in value]
    if isinstance(value, set | frozenset):
        return sorted((_describe(one, inside) for one in value), key=json.dumps)
    if isinstance(value, Mapping):
        pairs: list[JsonValue] = [[_describe(name, inside), _describe(one, inside)] for name, one in value.items()]
        return sorted(pairs, key=json.dumps)
    return _describe_code(value, inside) or _describe_ours(value, inside) or _describe_object(value, inside)


def _describe_code(value: object, inside: tuple[int, ...]) -> JsonValue:
    if isinstance(value, functools.partial):
        return ["partial", *(_describe(one, inside) for one in (value.func, value.args, value.keywords))]
    if isinstance(value, MethodType):
        return ["method", value.__func__.__qualname__, _describe(value.__self__, inside)]
    if isinstance(value, FunctionType):
        held = (value.__defaults__, value.__kwdefaults__, dict(_closed_over(value)))
        return [value.__qualname__, _digest_code(value.__code__), *(_describe(one, inside) for one in held)]
    return None


def _describe_ours(value: object, inside: tuple[int, ...]) -> JsonValue:
    """Return what identifies a part of ours that holds code of the user's."""
    if isinstance(value, FunctionPart):
        return _describe(value.function, inside)
    if isinstance(value, NamedReward):
        return [value.label, value.weight, _describe(value.function, inside)]
    if isinstance(value, MixedReward):
        return [value.weight, *(_describe(one, inside) for one in value.rewards)]
    if isinstance(value, OnePromptOfApp):
        return [value.identity, _describe(value.app, inside)]
    return None


def _describe_object(value: object, inside: tuple[int, ...]) -> JsonValue:
    kind = type(value)
    name = name_of(value) if isinstance(value, type) else stored_name(kind)
    if not isinstance(value, type) and isinstance(identity := getattr(value, "identity", None), str):
        return [name, identity]
    if isinstance(value, Record):
        return [name, value.model_dump_json()]
    # Ours work from settings and files, which are fingerprinted by themselves.
    if not isinstance(value, type) and is_dataclass(value) and not kind.__module__.startswith("drpo_graph."):
        told = [field.name for field in fields(value) if field.repr and field.compare]
        return [name, {one: _describe(getattr(value, one), inside) for one in told}]
    return name


def _closed_over(function: FunctionType) -> Iterator[tuple[str, object]]:
    """Yield what a function closes over and does not change: counters and logs of the user's are no parameters."""
    code = function.__code__
    changed = set(_stored_in(code))
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # Not set yet.
            continue
        if name not in changed and not isinstance(value, list | dict | set):
            yield name, value


def _stored_in(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_DEREF", "DELETE_DEREF"):
            yield str(step.argval)
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _stored_in(one)


def _digest_code(code: CodeType) -> str:
    """Return a hash of what a function does, wherever it stands."""
    consts = [_digest_code(one) if isinstance(one, CodeType) else describe_part(one) for one in code.co_consts]
    steps = hashlib.sha256(code.co_code).hexdigest()
    return digest_json([steps, consts, list(code.co_names), list(code.co_varnames), list(code.co_freevars)])
