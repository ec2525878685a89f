"""An agent's model calls with an optimised system prompt and ICL examples."""

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage, convert_to_messages

from drpo_graph.agents.prompt_slot import PromptSlot
from drpo_graph.errors import SettingsError, UsageError
from drpo_graph.inference import AlignedModel, GivenPrompt
from drpo_graph.inference.blocking import wait_for
from drpo_graph.inference.model import check_num_icl
from drpo_graph.inference.prompt_choice import ChosenPrompt, PromptSource, choose_prompt
from drpo_graph.parts.protocols import ExampleRetriever
from drpo_graph.prompts.library import as_turns
from drpo_graph.prompts.placeholders import fill
from drpo_graph.records import ICLExample

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
    from langchain.agents.middleware.types import AgentState, ContextT, ResponseT
except ImportError as error:
    raise UsageError(
        f"drpo_graph.agents needs the extra `agents` ({error}). Run: pip install 'drpo-graph[agents]'."
    ) from error

_MAX_KNOWN_QUERIES = 256

_QueryKey = tuple[str | None, str]
"""A message's id and text: a later message with the same text is a query of its own."""


class AlignmentMiddleware(AgentMiddleware[AgentState[ResponseT], ContextT, ResponseT]):
    """Puts a system prompt and ICL examples into each model request of an agent.

    The prompt stands before the agent's own system message, the examples before the conversation, as former exchanges:
    where the search and :class:`~drpo_graph.inference.AlignedModel` put them. The agent's state and stored history hold
    none of it. The examples are those for the last message of the user, and are found once for it, however many calls
    the agent makes. An ``AlignedModel`` as the agent's model is given the prompt in its own prompt's place; where there
    is neither prompt nor registry here, it keeps its own.

    Args:
        prompt: A text, a run's result, a registered prompt, or a slot, which is read anew at each request. Without, the
            registry's for the request's model, else the general alignment prompt.
        registry: Prompts by model name, looked up at each request.
        retriever: Finds the examples.
        num_icl: How many are shown, 0 to 5.
        values: What is filled into the placeholders of a slot's or a registered prompt.
        model: The model's name in the registry; what the request's model is called when absent.

    Raises:
        UsageError: the prompt or the number of examples cannot be used.
    """

    def __init__(
        self,
        prompt: GivenPrompt | PromptSlot | None = None,
        *,
        registry: PromptSource | None = None,
        retriever: ExampleRetriever | None = None,
        num_icl: int = 0,
        values: Mapping[str, str] | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__()
        check_num_icl(num_icl, has_retriever=retriever is not None)
        self._prompt = prompt
        self._registry = registry
        self._retriever = retriever
        self._num_icl = num_icl
        self._values = dict(values or {})
        self._model = model
        self._examples_by_query: OrderedDict[_QueryKey, Sequence[ICLExample]] = OrderedDict()
        self._lock = threading.Lock()
        if prompt is not None:
            self._choose("")  # What cannot be used is told now, not in the middle of a conversation.

    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT]:
        """Do as :meth:`awrap_model_call` where the agent is called synchronously."""
        examples = wait_for(self._find_examples(request.messages)) if self._num_icl else ()
        return handler(self._align(request, examples))

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT]:
        """Make a model call with prompt and examples.

        Raises:
            UsageError: the prompt cannot be read or filled.
        """
        return await handler(self._align(request, await self._find_examples(request.messages)))

    def _align(self, request: ModelRequest[ContextT], examples: Sequence[ICLExample]) -> ModelRequest[ContextT]:
        turns = convert_to_messages([(one["role"], one["content"]) for one in as_turns(examples)])
        # Messages of these roles are all that there can be.
        shown = request.override(messages=[*cast(list[AnyMessage], turns), *request.messages])
        is_aligned = isinstance(request.model, AlignedModel)
        if is_aligned and self._prompt is None and self._registry is None:
            return shown
        prompt = self._choose(self._model or _name_of(request.model))
        if is_aligned:
            return shown.override(model_settings={**request.model_settings, "system_prompt": prompt})
        return shown.override(system_message=_put_before(request.system_message, prompt))

    def _choose(self, model: str) -> str:
        if isinstance(self._prompt, PromptSlot):
            chosen = ChosenPrompt(self._prompt.current.text, "slot", self._prompt.placeholders)
        else:
            chosen = choose_prompt(self._prompt, model=model, registry=self._registry)
        if chosen.placeholders is None:
            return chosen.text
        try:
            return fill(chosen.text, chosen.placeholders, self._values)
        except KeyError as error:
            raise SettingsError(
                f"The system prompt ({chosen.source}) has a placeholder {error}, for which there is no value. Give the "
                "middleware one in `values`."
            ) from error

    async def _find_examples(self, messages: Sequence[AnyMessage]) -> Sequence[ICLExample]:
        query = next((one for one in reversed(messages) if isinstance(one, HumanMessage)), None)
        if self._retriever is None or self._num_icl == 0 or query is None or not query.text.strip():
            return ()
        key = (query.id, str(query.text))
        with self._lock:
            known = self._examples_by_query.get(key)
        if known is None:
            known = tuple(await self._retriever.retrieve(key[1], k=self._num_icl))[: self._num_icl]
            with self._lock:
                self._examples_by_query[key] = known
                while len(self._examples_by_query) > _MAX_KNOWN_QUERIES:
                    self._examples_by_query.popitem(last=False)
        return known


def _put_before(own: SystemMessage | None, prompt: str) -> SystemMessage:
    """Return a system message that begins with the prompt; what the agent's own one is besides its text stays."""
    if own is None or not own.content:
        return SystemMessage(prompt)
    if isinstance(own.content, str):
        return own.model_copy(update={"content": f"{prompt}\n\n{own.content}"})
    return own.model_copy(update={"content": [{"type": "text", "text": f"{prompt}\n\n"}, *own.content]})


def _name_of(model: BaseChatModel) -> str:
    """Return a model's name as a registry may have it, with its provider where it tells that."""
    if isinstance(model, AlignedModel):
        return model.model if isinstance(model.model, str) else _name_of(model.model)
    params = model._get_ls_params()
    provider, name = params.get("ls_provider"), params.get("ls_model_name")
    return f"{provider}:{name}" if provider and name else name or type(model).__name__
