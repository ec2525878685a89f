"""The four roles' models of one run, opened as a run opens them, on a fake server that keeps to a script."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from pydantic import JsonValue

from drpo_graph.calls.ledger import Ledger
from drpo_graph.calls.roles import Models
from drpo_graph.errors import ReplyError
from drpo_graph.events.schema import CallFinished, CallRetried, Event
from drpo_graph.models.request import ReplySchema
from drpo_graph.parts.parsing import extract_json
from drpo_graph.prompts.library import Message
from drpo_graph.records import ROLES, Role
from drpo_graph.search.assembly import build_context
from drpo_graph.search.session import RunContext, RunSession
from drpo_graph.settings.layers import build_settings
from tests.support.fake_server import FakeServer, Reply, Responder, ServerOptions

SCORE_SCHEMA = ReplySchema("score", {"type": "object", "properties": {"score": {"type": "integer"}}})
QUESTION: Sequence[Message] = ({"role": "user", "content": "How good is it?"},)
SOON = {"retry-after-ms": "1"}


def parse_answer(text: str) -> int:
    """Return the score in ``{"score": 4}``."""
    score = extract_json(text).get("score")
    if not isinstance(score, int):
        raise ReplyError(f"expected a score, got {score!r}")
    return score


def answer(*scores: int) -> Reply:
    """Return a reply with one choice per score, as text and as a tool's arguments."""
    texts = [f'{{"score": {score}}}' for score in scores]
    return Reply(texts, tool_arguments=texts)


def failing(status: int, message: str = "no", *, headers: Mapping[str, str] | None = None) -> Reply:
    """Return an HTTP error; the client may come back soon."""
    return Reply(status=status, error_message=message, headers=SOON if headers is None else headers)


@dataclass
class Script:
    """Gives its replies in order; a request too many is answered with a status that stops a run."""

    replies: list[Reply]
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, body: dict[str, object]) -> Reply:
        """Return the next reply."""
        self.bodies.append(body)
        if len(self.bodies) > len(self.replies):
            return Reply(status=418, error_message=f"request {len(self.bodies)} was not expected")
        return self.replies[len(self.bodies) - 1]


def script(*replies: Reply) -> Script:
    """Return a responder that gives these replies in order."""
    return Script(list(replies))


@dataclass
class Desk:
    """An open run: its models, its server, and what it told."""

    session: RunSession
    context: RunContext
    events: list[Event]
    store: BaseStore
    watchers: list[Callable[[Event], None]]
    """Told of every event as it happens."""

    @property
    def models(self) -> Models:
        return self.session.models

    @property
    def ledger(self) -> Ledger:
        return self.session.ledger

    @property
    def retries(self) -> list[CallRetried]:
        return [event for event in self.events if isinstance(event, CallRetried)]

    @property
    def calls(self) -> list[CallFinished]:
        return [event for event in self.events if isinstance(event, CallFinished)]

    def stop_at_retry(self, attempt: int = 1) -> None:
        """Stop the run as soon as it waits for this retry: what it would have waited stands in the event."""

        def watch(event: Event) -> None:
            if isinstance(event, CallRetried) and event.attempt == attempt:
                self.context.stop.request("seen enough")

        self.watchers.append(watch)


async def open_desk(
    base_url: str,
    *,
    store: BaseStore | None = None,
    role: Mapping[str, JsonValue] | None = None,
    models: Mapping[Role, BaseChatModel] | None = None,
    run_id: str = "run",
    **values: Any,
) -> Desk:
    """Return a run opened on a server; ``role`` holds settings of all four roles, ``values`` those of the run."""
    events: list[Event] = []
    watchers: list[Callable[[Event], None]] = [events.append]

    def tell(event: Event) -> None:
        for watch in watchers:
            watch(event)

    store = store or InMemoryStore()
    fields = {"model": "openai:m", "base_url": base_url, **(role or {})}
    # What a script answers is counted request by request: nothing else is asked.
    counted = {"probe": False, "max_reply_attempts": 2}
    settings = build_settings({**{name: dict(fields) for name in ROLES}, **counted, **values})
    context = build_context(settings, models=models, store=store, sinks=(tell,))
    return Desk(await context.session(run_id), context, events, store, watchers)


@contextlib.asynccontextmanager
async def serve(
    responder: Responder, options: ServerOptions | None = None, **desk: Any
) -> AsyncIterator[tuple[FakeServer, Desk]]:
    """Run a fake server and open a run on it."""
    async with FakeServer(responder, options) as server:
        yield server, await open_desk(server.base_url, **desk)


def by_content(replies: Mapping[str, Reply], default: Reply) -> Callable[[dict[str, object]], Reply]:
    """Return a responder that answers by what the last message contains."""

    def respond(body: dict[str, object]) -> Reply:
        messages = body["messages"]
        assert isinstance(messages, list)
        text = str(messages[-1]["content"])
        return next((reply for part, reply in replies.items() if part in text), default)

    return respond
