"""What a caller gives as parts: an object or a function, checked before the first call, and refused by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from langchain_core.runnables import Runnable

from drpo_graph.errors import SettingsError
from drpo_graph.parts.rewards import MixedReward, NamedReward


class _Form(NamedTuple):
    """How a part is called."""

    method: str | None
    """``None`` for one that is called itself."""
    num_given: int
    named: tuple[str, ...]
    signature: str


_FORMS = {
    "selector": _Form("select_metrics", 1, ("models",), "(query, *, models)"),
    "critic": _Form("critique", 2, ("selection", "models"), "(query, response, *, selection, models)"),
    "rewriter": _Form("rewrite", 1, ("models",), "(request, *, models)"),
    "beam_policy": _Form(None, 1, ("settings", "level"), "(children, *, settings, level)"),
    "example_retriever": _Form("retrieve", 1, ("k",), "(query, *, k)"),
    "responder": _Form("respond", 2, (), "(prompt, query)"),
    "screen": _Form("choose", 1, (), "(request)"),
}
_REWARD = _Form(None, 2, (), "(query, response)")


@dataclass(frozen=True, slots=True)
class FunctionPart:
    """A function in the place of a part that has one method: it is that method, whatever the protocol calls it."""

    function: Callable[..., Any]

    @property
    def select_metrics(self) -> Callable[..., Any]:
        """The function, of a metric selector."""
        return self.function

    @property
    def rewrite(self) -> Callable[..., Any]:
        """The function, of a rewriter."""
        return self.function

    @property
    def retrieve(self) -> Callable[..., Any]:
        """The function, of an example retriever."""
        return self.function

    @property
    def respond(self) -> Callable[..., Any]:
        """The function, of a responder."""
        return self.function

    @property
    def choose(self) -> Callable[..., Any]:
        """The function, of a screen."""
        return self.function


def as_part(name: str, given: Any) -> Any:
    """Return the part of this name as its protocol has it: what is given, or a function in its method's place.

    Raises:
        SettingsError: it can be called in no such way.
    """
    if given is None:
        return None
    form = _FORMS[name]
    if isinstance(given, type):
        raise SettingsError(f"The part {name!r}: expected an object, got the class {given.__qualname__} itself.")
    if name == "critic" and not hasattr(given, "critique"):
        for one in given.rewards if isinstance(given, MixedReward) else (given,):
            function = one.function if isinstance(one, NamedReward) else one
            _check_call(name, function, _REWARD, f"a reward function {_REWARD.signature} or {_tell(form)}")
        return given
    if form.method is None:
        _check_call(name, given, form, f"a function {form.signature}")
    elif hasattr(given, form.method):
        _check_call(name, getattr(given, form.method), form, _tell(form))
    else:
        _check_call(name, given, form, f"{_tell(form)}, or a function of that form")
        return FunctionPart(given)
    return given


def _tell(form: _Form) -> str:
    return f"an object with the method {form.method}{form.signature}"


def _check_call(name: str, called: object, form: _Form, expected: str) -> None:
    told = f"The part {name!r}: expected {expected}, got {_describe(called)}."
    if isinstance(called, Runnable):
        raise SettingsError(
            f"{told} A Runnable has no such form: call it in a function of yours, "
            "`async def part(...): return await runnable.ainvoke(...)`."
        )
    if not callable(called):
        raise SettingsError(told)
    try:
        inspect.signature(called).bind(*range(form.num_given), **dict.fromkeys(form.named))
    except TypeError as error:
        raise SettingsError(f"{told} It cannot be called so: {error}.") from error
    except ValueError:  # What is built in tells no signature.
        return


def _describe(called: object) -> str:
    name = getattr(called, "__qualname__", None)
    if not isinstance(name, str):
        return f"a {type(called).__qualname__}"
    try:
        return f"{name}{inspect.signature(called)}"  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
