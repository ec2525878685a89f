"""Chat models as callers give them: instances, with arguments bound to them, with others to fall back to."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableWithFallbacks

from drpo_graph.errors import SettingsError
from drpo_graph.models.bound import NEVER_BOUND
from drpo_graph.models.failures import classify_failure
from drpo_graph.models.request import Piece, Reply, Request
from drpo_graph.models.transport import StreamingTransport, Transport
from drpo_graph.records import ROLES, Role

GivenModel = Runnable[Any, Any]
"""A ``BaseChatModel``, what its ``bind()`` or ``with_config()`` returns, or what ``with_fallbacks()`` does."""

_SUPPORTED = "a chat model, one with bind(), with_config() or with_fallbacks()"
_ADAPTED = frozenset({"climb", "merge_system", "lower_logprobs", "adapt", "complete"})
"""Remedies by which the same model is asked in another way; none of them is a reason to ask another model."""


@dataclass(frozen=True, slots=True)
class OneModel:
    """A model instance with what its caller has bound to it."""

    model: BaseChatModel
    bound: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of each call."""
    handled: tuple[type[BaseException], ...] = (Exception,)
    """What it may raise for the next one to be asked."""


def check_models(models: object) -> None:
    """Do nothing where chat models are given by role, each in a form that can be asked.

    Raises:
        SettingsError: they are not.
    """
    if models is None:
        return
    if not isinstance(models, Mapping):
        raise SettingsError(
            f"models: expected chat models by role ({', '.join(ROLES)}), got a {type(models).__name__}."
        )
    if unknown := [role for role in models if role not in get_args(Role)]:
        raise SettingsError(f"models: there is no role {unknown[0]!r}; the roles are {', '.join(ROLES)}.")
    for role, model in models.items():
        if model is not None:
            unfold(role, model)


def unfold(role: Role, given: object) -> list[OneModel]:
    """Return the models that are asked for a role: the first one, then those that it falls back to.

    Raises:
        SettingsError: it is something else, such as a chain, or something is bound to it that the run decides itself.
    """
    return list(_unfold(role, given, {}))


def describe_bound(role: Role, given: object) -> list[tuple[str, Mapping[str, Any]]] | None:
    """Return which models are asked with what is bound to them; ``None`` of a model alone, which its name tells."""
    models = unfold(role, given)
    if len(models) == 1 and not models[0].bound:
        return None
    return [(name_model(one.model), one.bound) for one in models]


def name_model(model: BaseChatModel) -> str:
    """Return what a model is called: by its provider's name, else by its class."""
    return str(getattr(model, "model_name", None) or getattr(model, "model", None) or type(model).__name__)


def _unfold(role: Role, given: object, bound: Mapping[str, Any]) -> Iterator[OneModel]:
    if isinstance(given, BaseChatModel):
        yield OneModel(given, bound)
    elif isinstance(given, RunnableBinding) and not given.config_factories:
        if never := [name for name in given.kwargs if name in NEVER_BOUND]:
            raise SettingsError(f"The {role} model has {never[0]!r} bound to it, which a run decides itself.")
        for one in _unfold(role, given.bound, {**given.kwargs, **bound}):
            yield replace(one, model=_configure(one.model, given.config))
    elif isinstance(given, RunnableWithFallbacks) and given.exception_key is None:
        for model in (given.runnable, *given.fallbacks):
            for one in _unfold(role, model, bound):
                yield replace(one, handled=tuple(given.exceptions_to_handle))
    else:
        advice = {
            "RunnableRetry": " Give the model itself: a run asks again where that may help (max_retries).",
            "RunnableSequence": " Give its chat model: a run renders its requests and reads the replies itself.",
            "str": " Give a model's name in the settings.",
        }.get(type(given).__name__, "")
        raise SettingsError(f"The {role} model: expected {_SUPPORTED}, got a {type(given).__name__}.{advice}")


def _configure(model: BaseChatModel, config: RunnableConfig) -> BaseChatModel:
    """Return the model with what a configuration tells tracers of its calls."""
    changes: dict[str, Any] = {}
    if tags := config.get("tags"):
        changes["tags"] = [*(model.tags or []), *tags]
    if metadata := config.get("metadata"):
        changes["metadata"] = {**(model.metadata or {}), **metadata}
    callbacks = config.get("callbacks")
    if isinstance(callbacks, list):
        own = model.callbacks if isinstance(model.callbacks, list) else []
        changes["callbacks"] = [*own, *callbacks]
    return model.model_copy(update=changes) if changes else model


class FallbackTransport:
    """Asks one model after another until one replies.

    A failure by which the same model can be asked in another way, such as without a field that it refuses, is no reason
    to ask the next one; neither is a bug.
    """

    def __init__(self, ways: Sequence[tuple[OneModel, Transport]]) -> None:
        self._ways = ways

    async def send(self, request: Request) -> Reply:
        """Return the first reply that one of them gives; raise what the last one raises."""
        *first, (_, last) = self._ways
        for one, transport in first:
            try:
                return await transport.send(request)
            except Exception as error:
                if not _goes_on(error, one):
                    raise
        return await last.send(request)

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Yield the pieces of the first reply that begins."""
        for place, (one, transport) in enumerate(self._ways):
            has_begun = False
            try:
                async with aclosing(cast(Any, cast(StreamingTransport, transport).stream(request))) as pieces:
                    async for piece in pieces:
                        has_begun = True
                        yield piece
                return
            except Exception as error:
                if has_begun or place == len(self._ways) - 1 or not _goes_on(error, one):
                    raise


def _goes_on(error: Exception, one: OneModel) -> bool:
    failure = classify_failure(error)
    return failure is not None and failure.remedy not in _ADAPTED and isinstance(error, one.handled)
