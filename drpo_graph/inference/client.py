"""The base model's client for inference: made, fitted and asked as in the search, without a run around it."""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from langgraph.store.memory import InMemoryStore

from drpo_graph.calls.channel import CallChannel, Learned
from drpo_graph.calls.client_setup import find_capabilities, fit_client, make_learned, patience_of
from drpo_graph.calls.ledger import CallRecord, Ledger
from drpo_graph.calls.roles import RoleModel
from drpo_graph.errors import ModelCallError, SettingsError
from drpo_graph.events.emitter import Emitter
from drpo_graph.events.schema import Event, Warned
from drpo_graph.inference.feed import ResponseFeed, feed_from
from drpo_graph.models.answers import read_answer
from drpo_graph.models.capabilities import CapabilityCache
from drpo_graph.models.clients import ModelClient, build_client
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.transport import LangChainTransport
from drpo_graph.prompts.library import Message, ResponseFormat, load_prompts
from drpo_graph.records import Usage
from drpo_graph.settings.settings import RoleSettings, Settings
from drpo_graph.stop import StopSignal
from drpo_graph.storage.archive import Archive

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

logger = logging.getLogger(__name__)

Render = Callable[[ResponseFormat], list[Message]]
"""Makes the request, in the form that the model turned out to need."""


class Answer(NamedTuple):
    """A response, why it ended, and what it cost."""

    text: str
    finish_reason: str
    usage: Usage


@dataclass(slots=True)
class _Fitting:
    """The client as one event loop's servers showed what they can do, and what they have refused since."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    client: ModelClient | None = None
    learned: Learned = field(default_factory=Learned)


class AlignedClient:
    """Asks a base model, through the gates, retries and renderer of the search.

    Raises:
        ModelSpecError: the model string cannot be resolved.
        TemplateError: the template folder of the settings cannot be used.
    """

    def __init__(self, settings: Settings, model: "BaseChatModel | None" = None) -> None:
        self._settings = settings
        self._prompts = load_prompts(settings.templates)
        self._client = build_client("base", settings, model, keeps_cache=True)
        self._fittings = PerLoop(_Fitting)

    @property
    def name(self) -> str:
        """What the model is called."""
        return self._client.settings.model

    def check_sampling(self, fields: Sequence[str]) -> None:
        """Do nothing when a sampling parameter can be chosen per call.

        Raises:
            SettingsError: it is part of the chat model that was given, or of another provider's client.
        """
        fixed = [one for one in ("temperature", "top_p") if one in fields]
        if fixed and any(isinstance(one.transport, LangChainTransport) for one in self._client.replicas):
            raise SettingsError(
                f"{' and '.join(fixed)} of the model {self.name!r} cannot be changed per call: it is no "
                "OpenAI-compatible server. Give it when the model is made."
            )

    async def respond(self, render: Render, *, role: RoleSettings) -> Answer:
        """Return the response to what ``render`` makes, sampled as ``role`` says.

        Raises:
            ModelCallError: the endpoint cannot be used, or failed again and again.
            ReplyError: there is no usable response.
        """
        return await self._ask(await self._open(role), render)

    async def stream(self, render: Render, *, role: RoleSettings) -> AsyncGenerator[str | Answer]:
        """Yield the response in pieces, which together are what :meth:`respond` returns, and that at last.

        Raises:
            ModelCallError: as :meth:`respond`; or it broke off after its beginning was shown, or that was thinking.
            ReplyError: there is no usable response.
        """
        model = await self._open(role)
        feed = ResponseFeed(model.response_format)
        asking = asyncio.create_task(self._ask(feed_from(model, feed), render))
        asking.add_done_callback(lambda _: feed.end())
        try:
            async for piece in feed:
                yield piece
            answer = await asking
            if not answer.text.startswith(feed.shown):
                raise ModelCallError(
                    f"What came of the model {self.name!r} was its thinking, which no tag had opened. Let its server "
                    "read the thinking (vLLM: --reasoning-parser), or ask again: now it is known, and waited for.",
                    kind="broken_off",
                    role="base",
                )
            if len(answer.text) > len(feed.shown):
                yield answer.text[len(feed.shown) :]
            yield answer
        finally:
            if not asking.done():
                feed.abandon()
                asking.cancel()
                await asyncio.wait([asking])

    async def _ask(self, model: RoleModel, render: Render) -> Answer:
        sample = await model.respond(render(model.response_format))
        text = sample.require(f"The model {self.name!r} gave no response")
        assert sample.key is not None, "a value comes from a call"
        stored = await model.channel.archive.record("calls", sample.key, CallRecord)
        assert stored is not None, "a call is stored before it is answered"
        choices = stored.choices
        model.channel.learned.thinks_unopened |= read_answer(choices[0].text).is_unopened
        return Answer(text, choices[0].finish_reason, model.channel.ledger.usage_by_role.get("base", Usage()))

    async def _open(self, role: RoleSettings) -> RoleModel:
        """Return the model with records of its own: a question that is asked twice is two questions."""
        archive = Archive(InMemoryStore(), uuid.uuid4().hex)
        fitting = self._fittings.get()
        async with fitting.lock:
            if fitting.client is None:
                may_ask = self._settings.probe
                found = await find_capabilities(
                    self._client,
                    archive=archive,
                    cache=CapabilityCache(),
                    may_ask=may_ask,
                    patience=patience_of(self._settings, partial(logger.warning, "%s")),
                )
                fitting.client, fitting.learned = fit_client(self._client, found), make_learned(None, found)
        channel = CallChannel(
            client=replace(fitting.client, settings=role.model_copy(update={"model": self.name})),
            settings=self._settings,
            ledger=Ledger(archive, StopSignal()),
            archive=archive,
            emitter=Emitter("aligned", (_log_warning,), is_streamed=False),
            learned=fitting.learned,
        )
        return RoleModel(channel, self._prompts)


def _log_warning(event: Event) -> None:
    """Tell what affects the responses: there is no run whose display would."""
    if isinstance(event, Warned):
        logger.warning("%s", event.message)
