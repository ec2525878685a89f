"""A response on its way from the server to whoever reads it, cleaned as it comes.

The transport of one call is wrapped: gates, retries and limits are those of every other call, and the pieces that
arrive are shown as soon as nothing that may follow can take them back.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

from drpo_graph.calls.channel import Learned
from drpo_graph.calls.roles import RoleModel
from drpo_graph.errors import ModelCallError
from drpo_graph.models.answers import settle_answer_start
from drpo_graph.models.clients import ModelClient
from drpo_graph.models.failures import MalformedReplyError, classify_failure
from drpo_graph.models.request import Choice, Reply, Request
from drpo_graph.models.transport import StreamingTransport, Transport
from drpo_graph.prompts.library import ResponseFormat
from drpo_graph.records import Usage
from drpo_graph.safety.redaction import MIN_SECRET_CHARS, mask
from drpo_graph.safety.texts import clean_surrogates

_MAX_LOOKS = 64
"""While a text doubles."""
_LOOK_S = 0.05


@dataclass(eq=False, slots=True)
class ResponseFeed:
    """The certain beginning of one response, in the pieces in which it grew."""

    form: ResponseFormat
    shown: str = ""
    """All pieces so far."""
    _pieces: "asyncio.Queue[str | None]" = field(default_factory=asyncio.Queue)
    _sending: "asyncio.Task[Any] | None" = None

    async def __aiter__(self) -> AsyncIterator[str]:
        while (piece := await self._pieces.get()) is not None:
            yield piece

    def show(self, certain: str) -> None:
        """Hand on what a longer beginning adds."""
        if len(certain) > len(self.shown) and certain.startswith(self.shown):
            self._pieces.put_nowait(certain[len(self.shown) :])
            self.shown = certain

    def end(self) -> None:
        """Let the reader go when it has read what was shown."""
        self._pieces.put_nowait(None)

    def note_sending(self) -> None:
        """Take the running task for the one that reads from the server."""
        self._sending = asyncio.current_task()

    def abandon(self) -> None:
        """End the request: nobody reads on."""
        if self._sending is not None:
            self._sending.cancel()


class _Growing:
    """A text that comes in pieces, and when to look at the whole of it again.

    What is certain of a text depends on all of it. To look at all of it for each piece would cost the square of its
    length: a long one is looked at when it has grown by a share of itself, and a slow one as often as anyone reads.
    """

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[str] = []
        self._looked_at_size = 0
        self._looked_at = -_LOOK_S

    def add(self, piece: str) -> None:
        """Take a piece."""
        self._parts.append(piece)
        self.size += len(piece)

    def is_due(self) -> bool:
        """Return whether to look again, and take it as done."""
        now = time.monotonic()
        num_new = self.size - self._looked_at_size
        if num_new < self._looked_at_size // _MAX_LOOKS and now - self._looked_at < _LOOK_S:
            return False
        self._looked_at_size, self._looked_at = self.size, now
        return True

    def whole(self) -> str:
        """Return all of it."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]


@dataclass(frozen=True, slots=True)
class _FeedingTransport:
    """A transport that shows a reply while it comes."""

    transport: Transport
    feed: ResponseFeed
    client: ModelClient
    learned: Learned
    secret: str = field(repr=False)

    async def send(self, request: Request) -> Reply:
        """Return the reply to one request.

        Raises:
            ModelCallError: it broke off after its beginning was shown: a new one would not go on with it.
        """
        if self.feed.shown:
            raise self._broken()
        self.feed.note_sending()
        if not isinstance(self.transport, StreamingTransport):
            return await self.transport.send(request)
        try:
            return await self._read(self.transport, request)
        except Exception as error:
            if self.feed.shown:
                raise self._broken() from error
            if classify_failure(error) is None and type(error).__name__ == "APIError":
                # OpenAI's client for an error that a server tells, without a status, in a stream it has begun.
                raise MalformedReplyError(str(error)) from error
            raise

    async def _read(self, transport: StreamingTransport, request: Request) -> Reply:
        text, refusal, reason, usage = _Growing(), _Growing(), "stop", Usage(calls=1)
        # An iterator of ours is a generator: closing it closes the connection where the response ends early.
        async with aclosing(cast(Any, transport.stream(request))) as pieces:
            async for piece in pieces:
                text.add(piece.text)
                refusal.add(piece.refusal)
                reason, usage = piece.finish_reason or reason, piece.usage or usage
                if refusal.size:
                    if refusal.is_due():
                        self.feed.show(self._certain(refusal.whole()).strip())
                elif text.is_due() and self._show(text.whole()):
                    break
        said = Choice(text=clean_surrogates(text.whole()), finish_reason=reason, refusal=refusal.whole() or None)
        return Reply((said,), usage)

    def _show(self, text: str) -> bool:
        """Show what is certain of a text; return whether nothing that follows belongs to it."""
        said = settle_answer_start(self._certain(text))
        settled = self.feed.form.settle(said.text)
        if said.start or not self.learned.thinks_unopened:
            self.feed.show(settled.text)
        return settled.is_ended

    def _certain(self, text: str) -> str:
        """Return the text without the key, should the server say it, or the beginning of the key at its end."""
        known = mask(clean_surrogates(text), secret=self.secret)
        if len(self.secret) < MIN_SECRET_CHARS:
            return known
        lengths = range(min(len(self.secret) - 1, len(known)), 0, -1)
        return known[: len(known) - next((one for one in lengths if known.endswith(self.secret[:one])), 0)]

    def _broken(self) -> ModelCallError:
        name = self.client.settings.model
        message = f"The model {name!r} broke off in the middle of its response. Ask it again."
        return ModelCallError(message, kind="broken_off", role=self.client.role)


def feed_from(model: RoleModel, feed: ResponseFeed) -> RoleModel:
    """Return the model with its replies shown while they come."""
    client = model.channel.client
    replicas = tuple(
        replace(one, transport=_FeedingTransport(one.transport, feed, client, model.channel.learned, one.secret))
        for one in client.replicas
    )
    feeding = replace(client, balancer=replace(client.balancer, replicas=replicas))
    return replace(model, channel=replace(model.channel, client=feeding))
