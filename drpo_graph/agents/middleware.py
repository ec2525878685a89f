"""An agent's model calls with an optimised system prompt and ICL examples."""

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, convert_to_messages

from drpo_graph.agents.prompt_slot import PromptSlot
from drpo_graph.errors import SettingsError, UsageError
from drpo_graph.inference import AlignedModel, GivenPrompt
from drpo_graph.inference.blocking import wait_for
from drpo_graph.inference.model import check_num_icl
from drpo_graph.inference.prompt_choice import ChosenPrompt, PromptSource, RoutedPrompt, find_prompt
from drpo_graph.inference.routers import RouterFile, RouterOpener, Routers, load_router
from drpo_graph.models.answers import read_answer
from drpo_graph.parts.choosers import PromptChooser
from drpo_graph.parts.own_code import call_own
from drpo_graph.parts.protocols import ExampleRetriever
from drpo_graph.prompts.library import as_turns
from drpo_graph.prompts.placeholders import TemplateSyntaxError, fill
from drpo_graph.records import ICLExample
from drpo_graph.safety.installing import tell_install

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
    from langchain.agents.middleware.types import AgentState, ContextT, ResponseT
except ImportError as error:
    raise UsageError(f"drpo_graph.agents needs the extra `agents` ({error}). Run: {tell_install('agents')}.") from error

_MAX_KNOWN_QUERIES = 256

_V = TypeVar("_V")


class _Query(NamedTuple):
    """A message's id and text: a later message with the same text is a query of its own."""

    id: str | None
    text: str


class _ByQuery(Generic[_V]):
    """What was found for the last queries, each once, however many calls an agent makes for it."""

    def __init__(self) -> None:
        self._found: OrderedDict[_Query, _V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, query: _Query) -> _V | None:
        with self._lock:
            return self._found.get(query)

    def keep(self, query: _Query, found: _V) -> None:
        with self._lock:
            self._found[query] = found
            while len(self._found) > _MAX_KNOWN_QUERIES:
                self._found.popitem(last=False)


class AlignmentMiddleware(AgentMiddleware[AgentState[ResponseT], ContextT, ResponseT]):
    """Puts a system prompt and ICL examples into each model request of an agent.

    The prompt stands before the agent's own system message, the examples before the conversation, as former exchanges:
    where the search and :class:`~drpo_graph.inference.AlignedModel` put them. The agent's state and stored history hold
    none of it. The examples are those for the last message of the user, and are found once for it, however many calls
    the agent makes; so is the prompt where a router chooses it. An ``AlignedModel`` as the agent's model is given the
    prompt in its own prompt's place; where there is neither prompt nor registry here, it keeps its own. Of several,
    each puts its prompt before that of the one earlier in the agent's list; a middleware that sets the system message
    anew, as ``dynamic_prompt`` of LangChain does, belongs before these. Thinking that a server left in the text of an
    answer is moved to the message's ``additional_kwargs["reasoning_content"]``.

    Args:
        prompt: A text, a run's result, a registered prompt, a router, which chooses one for each query, or a slot,
            which is read anew at each request. Without, the registry's for the request's model, else the general
            alignment prompt.
        registry: Prompts by model name, looked up at each request.
        retriever: Finds the examples.
        num_icl: How many are shown, 0 to 5.
        values: What is filled into the placeholders of a slot's or a registered prompt.
        model: The model's name in the registry; what the request's model is called when absent.
        open_router: Reads the registry's routers; one of your own can give them other embeddings.
        name: What LangChain tells middlewares apart by, where an agent has several of these.

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
        open_router: RouterOpener = load_router,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self._name = name or type(self).__name__
        check_num_icl(num_icl, has_retriever=retriever is not None)
        self._prompt = prompt
        self._registry = registry
        self._retriever = retriever
        self._num_icl = num_icl
        self._values = dict(values or {})
        self._model = model
        self._routers = Routers(open_router)
        self._examples = _ByQuery[Sequence[ICLExample]]()
        self._choices = _ByQuery[tuple[PromptChooser, ChosenPrompt]]()
        if prompt is not None:
            self._check()

    @property
    def name(self) -> str:
        """What LangChain tells it from others by."""
        return self._name

    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT]:
        """Do as :meth:`awrap_model_call` where the agent is called synchronously."""
        examples = wait_for(self._find_examples(request.messages)) if self._num_icl else ()
        prompt = self._find(request.model)
        if isinstance(prompt, RoutedPrompt):
            prompt = wait_for(self._choose(prompt, request.messages))
        return _without_thinking(handler(self._align(request, examples, prompt=prompt)))

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT]:
        """Make a model call with prompt and examples.

        Raises:
            UsageError: the prompt cannot be read, chosen or filled.
        """
        examples = await self._find_examples(request.messages)
        prompt = self._find(request.model)
        if isinstance(prompt, RoutedPrompt):
            prompt = await self._choose(prompt, request.messages)
        return _without_thinking(await handler(self._align(request, examples, prompt=prompt)))

    def _check(self) -> None:
        """Do nothing when the prompt can be used: what cannot is told now, not in the middle of a conversation."""
        found = self._find_for("")
        if isinstance(found, ChosenPrompt):
            self._fill(found)
        elif isinstance(found.chooser, RouterFile):
            self._fill(ChosenPrompt(found.chooser.best_prompt, found.source, found.placeholders))

    def _find(self, model: BaseChatModel) -> ChosenPrompt | RoutedPrompt | None:
        """Return the prompt for a model, or ``None`` where it keeps its own."""
        if isinstance(model, AlignedModel) and self._prompt is None and self._registry is None:
            return None
        return self._find_for(self._model or _name_of(model))

    def _find_for(self, name: str) -> ChosenPrompt | RoutedPrompt:
        if isinstance(self._prompt, PromptSlot):
            return self._prompt.find_prompt()
        return find_prompt(self._prompt, model=name, registry=self._registry, routers=self._routers)

    def _align(
        self, request: ModelRequest[ContextT], examples: Sequence[ICLExample], *, prompt: ChosenPrompt | None
    ) -> ModelRequest[ContextT]:
        turns = convert_to_messages([(one["role"], one["content"]) for one in as_turns(examples)])
        # Messages of these roles are all that there can be.
        shown = request.override(messages=[*cast(list[AnyMessage], turns), *request.messages])
        if prompt is None:
            return shown
        text = self._fill(prompt)
        if isinstance(request.model, AlignedModel):
            given = _add_to(request.model_settings.get("system_prompt"), prompt._replace(text=text))
            return shown.override(model_settings={**request.model_settings, "system_prompt": given})
        return shown.override(system_message=_put_before(request.system_message, text))

    def _fill(self, prompt: ChosenPrompt) -> str:
        if prompt.placeholders is None:
            return prompt.text
        try:
            return fill(prompt.text, prompt.placeholders, self._values)
        except KeyError as error:
            raise SettingsError(
                f"The system prompt ({prompt.source}) has a placeholder {error}, for which there is no value. Give the "
                "middleware one in `values`."
            ) from error
        except TemplateSyntaxError as error:
            raise SettingsError(
                f"The system prompt ({prompt.source}): placeholders={prompt.placeholders!r}, and it cannot be read so: "
                f"{error}."
            ) from error

    async def _choose(self, prompt: RoutedPrompt, messages: Sequence[AnyMessage]) -> ChosenPrompt:
        query = _query_of(messages)
        known = self._choices.get(query)
        # Another router than the one that chose, as after a swap, chooses anew.
        if known is not None and known[0] is prompt.chooser:
            return known[1]
        chosen = await prompt.choose(query.text)
        self._choices.keep(query, (prompt.chooser, chosen))
        return chosen

    async def _find_examples(self, messages: Sequence[AnyMessage]) -> Sequence[ICLExample]:
        query = _query_of(messages)
        if self._retriever is None or self._num_icl == 0 or not query.text.strip():
            return ()
        known = self._examples.get(query)
        if known is None:
            found: Sequence[ICLExample] = await call_own(
                self._retriever.retrieve,
                query.text,
                k=self._num_icl,
                called="the example retriever",
                is_bounded=False,
            )
            known = tuple(found)[: self._num_icl]
            self._examples.keep(query, known)
        return known


def _without_thinking(response: ModelResponse[ResponseT]) -> ModelResponse[ResponseT]:
    messages = [_answer_of(one) if isinstance(one, AIMessage) else one for one in response.result]
    return replace(response, result=messages)


def _answer_of(message: AIMessage) -> AIMessage:
    """Return a message with the model's answer for its text, as a search reads it; its parts are the provider's own."""
    if not isinstance(message.content, str):
        return message
    said = read_answer(message.content)
    if said.text == message.content:
        return message
    thinking = {"reasoning_content": message.content[: said.start].strip()}
    kwargs = {**thinking, **message.additional_kwargs}
    return message.model_copy(update={"content": said.text.strip(), "additional_kwargs": kwargs})


def _query_of(messages: Sequence[AnyMessage]) -> _Query:
    """Return the last message of the user; where there is none, a query without a text."""
    last = next((one for one in reversed(messages) if isinstance(one, HumanMessage)), None)
    return _Query(None, "") if last is None else _Query(last.id, str(last.text))


def _add_to(former: object, prompt: ChosenPrompt) -> str | ChosenPrompt:
    """Return what an aligned model is given: the prompt, before that of a middleware around this one."""
    if isinstance(former, str | ChosenPrompt):
        text, choice = (former, None) if isinstance(former, str) else (former.text, former.choice)
        prompt = prompt._replace(text=f"{prompt.text}\n\n{text}", choice=prompt.choice or choice)
    # It tells of a choice in its response.
    return prompt.text if prompt.choice is None else prompt


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
