"""A model with its optimised prompt, as a LangChain chat model."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, Self, cast

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableLambda, RunnableSequence
from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SkipValidation,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from drpo_graph.errors import SettingsError, UsageError
from drpo_graph.inference.blocking import iterate, wait_for
from drpo_graph.inference.client import AlignedClient
from drpo_graph.inference.prompt_choice import ChosenPrompt, GivenPrompt, PromptSource, RoutedPrompt, find_prompt
from drpo_graph.inference.question import Question, read_conversation, read_fields
from drpo_graph.inference.routers import RouterFile, RouterOpener, Routers, load_router
from drpo_graph.parts.own_code import OWN_TIMEOUT_S, call_own
from drpo_graph.parts.protocols import ExampleRetriever
from drpo_graph.records import ICLExample
from drpo_graph.settings.layers import build_settings, explain_invalid
from drpo_graph.settings.settings import RoleSettings, Settings

MAX_NUM_ICL = 5

_SAMPLING = ("temperature", "top_p", "max_tokens")
_PER_CALL = (*_SAMPLING, "system_prompt", "num_icl")


class AlignedModel(BaseChatModel):
    """A model asked with its system prompt and ICL examples, exactly as the search asks it.

    The input is a text, messages of which the last is the query, or a dict with ``query`` (and ``history``) or
    ``messages``; the output an ``AIMessage``. Every choice below but model and place can be made per call too:
    ``await aligned.ainvoke("Hello", num_icl=0, temperature=0.7)``, or for good with ``bind``. A system message in the
    input stands after the aligned prompt.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str | BaseChatModel
    """``provider:model`` as in the search, or a chat model of LangChain's."""
    system_prompt: GivenPrompt | None = None
    """The prompt: a text, a run's result, a registered prompt, or a router, or its file, which chooses one for
    each query. Without, the registry's for the model, else the general one."""
    registry: PromptSource | None = None
    """Prompts that were optimised for models: a ``PromptRegistry``, or any object with ``find(model)``. Where a model's
    prompt has a router there, that chooses."""
    open_router: RouterOpener = Field(default=load_router, exclude=True)
    """Reads the files of routers; one of your own can give them other embeddings. ``settings.embeddings_base_url`` says
    where those that a file names are served."""
    retriever: SkipValidation[ExampleRetriever] | None = None
    """Finds the examples."""
    num_icl: int = 0
    """ICL examples shown before the query, 0 to 5."""
    base_url: str | tuple[str, ...] | None = None
    api_key_env: str | None = None
    temperature: float | Literal["none"] | None = None
    """0 by default; as the next three, the settings' where absent. ``"none"`` sends none, for models that take none."""
    top_p: float | Literal["none"] | None = None
    """1 by default, or ``"none"``."""
    max_tokens: int | None = None
    """Longest response; 2048 by default."""
    stop: tuple[str, ...] | None = None
    """Texts at which a response ends; those of the flat format come on top."""
    settings: Settings | None = None
    """Everything else of a run that matters here: time-outs, retries, limits, templates, and the ``base`` role's form.
    """

    cache: BaseCache | bool | None = Field(default=False, exclude=True)
    """None: LangChain's caches know a model by its parameters, and neither the examples nor the templates of this."""

    _client: AlignedClient = PrivateAttr()
    _role: RoleSettings = PrivateAttr()
    _routers: Routers = PrivateAttr()
    _prompt: ChosenPrompt | RoutedPrompt = PrivateAttr()

    @field_validator("stop", mode="before")
    @classmethod
    def _read_stop(cls, value: object) -> object:
        # One text, as a call takes it.
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            raise SettingsError(f"AlignedModel: {explain_invalid(error)}") from None

    def model_post_init(self, context: object, /) -> None:
        """Open the client.

        Raises:
            ModelSpecError: the model cannot be resolved.
            SettingsError: a value cannot be used.
            RewardModelError: the registry's router cannot be read.
        """
        super().model_post_init(context)
        if self.cache:
            raise SettingsError(
                "cache: an aligned model keeps none, whose answers could be those to other examples. Keep what it "
                "returns, or give the search's settings a cache of embeddings."
            )
        # Unset would mean LangChain's global cache.
        self.cache = False
        check_num_icl(self.num_icl, has_retriever=self.retriever is not None)
        settings = self._read_settings()
        self._role = settings.base
        self._client = AlignedClient(settings, self.model if isinstance(self.model, BaseChatModel) else None)
        if isinstance(self.model, BaseChatModel):
            self._client.check_sampling([one for one in _SAMPLING if getattr(self, one) is not None])
        opener = self.open_router
        if opener is load_router and settings.embeddings_base_url is not None:
            opener = partial(load_router, base_url=settings.embeddings_base_url)
        self._routers = Routers(opener)
        self._prompt = self._find_prompt(self.system_prompt)
        if isinstance(self._prompt, RoutedPrompt) and isinstance(self._prompt.chooser, RouterFile):
            self._prompt.chooser.open()  # What cannot be read is told now, not with the first query.

    @property
    def chosen_prompt(self) -> ChosenPrompt:
        """The system prompt that calls are made with, and where it comes from; looked up when the model is made.

        Raises:
            UsageError: there is no one prompt: a router chooses for each query. :meth:`achoose_prompt` tells.
        """
        if isinstance(self._prompt, RoutedPrompt):
            raise UsageError(
                f"The system prompt ({self._prompt.source}) is chosen for each query: no single one can be told. "
                "Ask `await model.achoose_prompt(query)`."
            )
        return self._prompt

    async def achoose_prompt(self, query: str) -> ChosenPrompt:
        """Return the system prompt that a query is asked with, where it comes from, and what is expected of it.

        Given to the call as its ``system_prompt``, it is not chosen a second time.

        Raises:
            RewardModelError: the router cannot choose.
        """
        return await _choose(self._prompt, query)

    def as_node(self) -> Runnable[Mapping[str, object], dict[str, list[AIMessage]]]:
        """Return the model as a node of a LangGraph graph whose state has ``messages``: it adds its response."""
        return RunnableSequence(self, RunnableLambda(_as_update))

    async def find_examples(self, query: str, *, num_icl: int | None = None) -> Sequence[ICLExample]:
        """Return the ICL examples that a query is shown with.

        Args:
            query: What the model is asked.
            num_icl: How many, in place of the model's own number.

        Raises:
            SettingsError: there is no retriever, or the number is not 0 to 5.
        """
        wanted = self.num_icl if num_icl is None else num_icl
        check_num_icl(wanted, has_retriever=self.retriever is not None)
        if self.retriever is None or wanted == 0:
            return ()
        timeout_s = self.settings.timeout_s if self.settings is not None else OWN_TIMEOUT_S
        found: Sequence[ICLExample] = await call_own(
            self.retriever.retrieve,
            query,
            k=wanted,
            called="the example retriever",
            timeout_s=timeout_s,
            is_bounded=False,
        )
        return tuple(found)[:wanted]

    @property
    def _llm_type(self) -> str:
        return "drpo-aligned"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            **self._role.model_dump(mode="json"),
            "model": self._client.name,
            "system_prompt": self._prompt.source if isinstance(self._prompt, RoutedPrompt) else self._prompt.text,
            "num_icl": self.num_icl,
        }

    def _convert_input(self, model_input: LanguageModelInput | Mapping[str, object]) -> PromptValue:
        return super()._convert_input(read_fields(model_input) if isinstance(model_input, Mapping) else model_input)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question = await self._prepare(messages, stop, choices=kwargs)
        answer = await self._client.respond(question.render, role=question.role)
        message = AIMessage(content=answer.text, **question.describe(answer, model=self._client.name))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        question = await self._prepare(messages, stop, choices=kwargs)
        async with aclosing(self._client.stream(question.render, role=question.role)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    message = AIMessageChunk(content=piece)
                else:
                    message = AIMessageChunk(content="", **question.describe(piece, model=self._client.name))
                chunk = ChatGenerationChunk(message=message)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
                yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return wait_for(self._agenerate(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in iterate(self._astream(messages, stop, **kwargs)):
            if run_manager is not None:
                run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
            yield chunk

    def _find_prompt(self, given: GivenPrompt | ChosenPrompt | None) -> ChosenPrompt | RoutedPrompt:
        return find_prompt(given, model=self._client.name, registry=self.registry, routers=self._routers)

    def _read_settings(self) -> Settings:
        # Who asks a model for an answer does not wait ten minutes for a lost server, as a run does.
        given = self.settings or Settings(max_outage_s=0)
        own = {name: getattr(self, name) for name in (*_SAMPLING, "base_url", "api_key_env", "stop")}
        chosen = {name: value for name, value in own.items() if value is not None}
        base: dict[str, object] = {**given.base.model_dump(), **chosen}
        # A chat model has a name of its own, whatever the settings name.
        base["model"] = self.model if isinstance(self.model, str) else ""
        return build_settings({**given.model_dump(), "base": base})

    async def _prepare(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, *, choices: Mapping[str, object]
    ) -> Question:
        unknown = sorted(set(choices) - set(_PER_CALL))
        if unknown:
            raise SettingsError(f"A call has no choice {unknown[0]!r}: expected one of {', '.join(_PER_CALL)}, stop.")
        sampling = {name: choices[name] for name in _SAMPLING if choices.get(name) is not None}
        if stop is not None:
            sampling["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        self._client.check_sampling(list(sampling))
        role = self._role
        if sampling:
            role = build_settings({"base": {**role.model_dump(), **sampling}}).base
        conversation = read_conversation(messages)
        own = cast(GivenPrompt | ChosenPrompt | None, choices.get("system_prompt"))
        found = self._prompt if own is None else self._find_prompt(own)
        prompt = await _choose(found, conversation.query)
        examples = await self.find_examples(conversation.query, num_icl=cast(int | None, choices.get("num_icl")))
        return Question(role, prompt, conversation, examples)


def check_num_icl(num_icl: int, *, has_retriever: bool) -> None:
    """Do nothing when so many ICL examples can be had.

    Raises:
        SettingsError: the number is not 0 to 5, or there is nothing to find examples with.
    """
    if not 0 <= num_icl <= MAX_NUM_ICL:
        raise SettingsError(f"num_icl={num_icl}: expected 0 to {MAX_NUM_ICL} ICL examples.")
    if num_icl and not has_retriever:
        raise SettingsError(f"num_icl={num_icl}: there is nothing to find examples with. Give a retriever.")


async def _choose(found: ChosenPrompt | RoutedPrompt, query: str) -> ChosenPrompt:
    return await found.choose(query) if isinstance(found, RoutedPrompt) else found


def _as_update(message: AIMessage) -> dict[str, list[AIMessage]]:
    return {"messages": [message]}
