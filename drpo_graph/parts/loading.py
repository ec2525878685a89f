"""Functions of the user's own, loaded by name. Only a person's word loads code, never a checkpoint's."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from drpo_graph.errors import SettingsError


def load_function(spec: str, *, what: str, example: str, signature: str, num_given: int) -> Callable[..., object]:
    """Return the function that ``module:function`` names; the working folder is searched first.

    Args:
        spec: The name.
        what: What messages call it, e.g. ``Reward``.
        example: A name of this form, to be shown.
        signature: What follows the function's name in a message that says what was expected.
        num_given: How many arguments it is called with.

    Raises:
        SettingsError: there is none, or it takes other arguments.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name.isidentifier():
        raise SettingsError(f"{what} {spec!r}: expected module:function, e.g. {example}.")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        try:
            function: Callable[..., object] = getattr(importlib.import_module(module_name), name)
        finally:
            sys.path.remove(folder)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise SettingsError(
            f"{what} {spec!r} cannot be loaded: {error}. Give a module of the working folder or one that is installed."
        ) from error
    if not _takes(function, num_given):
        raise SettingsError(f"{what} {spec!r}: expected `async def {name}{signature}, or `def` for one in a thread.")
    return function


def _takes(function: object, num_given: int) -> bool:
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(num_given))
    except TypeError:
        return False
    except ValueError:  # What is built in tells no signature.
        return True
    return True


def is_async(function: object) -> bool:
    """Return whether a function, or an object that is called like one, is asynchronous."""
    return any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None))))  # noqa: B004
