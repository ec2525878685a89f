"""What LangChain's callbacks, and so tracers and ``stream_mode="messages"``, are told of each model call."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, AsyncCallbackManagerForLLMRun, BaseCallbackManager
from langchain_core.outputs import Generation, LLMResult
from langchain_core.runnables.config import var_child_runnable_config

from drpo_graph.models.request import Reply, Request

_place: ContextVar[Mapping[str, object] | None] = ContextVar("_place", default=None)

Listeners = Mapping[str, Any]
"""Keyword arguments of a LangChain call: ``callbacks``, and the ``metadata``, ``tags`` and name it is told with."""


@contextmanager
def calling_for(**place: object) -> Iterator[None]:
    """Say what the calls in the block are made for: ``run_id``, ``level``, ``candidate_id``, ``query_id``."""
    token = _place.set({**(_place.get() or {}), **place})
    try:
        yield
    finally:
        _place.reset(token)


def find_place() -> Mapping[str, object]:
    """Return what the calls that are made now are made for, as far as that was said."""
    return _place.get() or {}


def find_listeners(role: str) -> Listeners:
    """Return who is to be told of a role's call that is made now; nothing where nobody listens, or for no node.

    A model behind its prompt is told of by LangChain itself, as the model that it is.
    """
    place, config = _place.get(), var_child_runnable_config.get()
    callbacks = config.get("callbacks") if config and place is not None else None
    handlers = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks
    if not handlers or place is None:
        return {}
    return {
        "callbacks": callbacks,
        "metadata": {f"drpo_{name}": value for name, value in {"role": role, **place}.items()},
        "tags": ["drpo", f"drpo:{role}"],
        "run_name": f"drpo {role}",
    }


class ToldCompletion:
    """A call of ``/v1/completions``, which does not go through LangChain, told as LangChain would tell it."""

    def __init__(self, runs: list[AsyncCallbackManagerForLLMRun]) -> None:
        self._runs = runs

    @classmethod
    async def begin(cls, request: Request, prompt: str, *, model: str) -> "ToldCompletion":
        """Tell that it begins."""
        listeners = find_listeners(request.role)
        if not listeners:
            return cls([])
        manager = AsyncCallbackManager.configure(
            listeners["callbacks"], inheritable_tags=listeners["tags"], inheritable_metadata=listeners["metadata"]
        )
        params: Any = {"model": model, "n": request.num_samples, "temperature": request.temperature}
        told = {"name": listeners["run_name"], "invocation_params": params}
        return cls(await manager.on_llm_start({"name": model}, [prompt], **told))

    async def end(self, reply: Reply) -> None:
        """Tell what came back."""
        usage = {"prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens}
        generations = [[Generation(text=one.text) for one in reply.choices]]
        for run in self._runs:
            await run.on_llm_end(LLMResult(generations=generations, llm_output={"token_usage": usage}))

    async def fail(self, error: BaseException) -> None:
        """Tell that it failed."""
        for run in self._runs:
            await run.on_llm_error(error)
