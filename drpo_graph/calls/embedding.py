"""Texts embedded as calls of a run: retried, waited for, counted and kept like those of its models."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from drpo_graph.calls.channel import CallChannel, RefusedRequestError
from drpo_graph.calls.ledger import CallRecord, Ledger
from drpo_graph.errors import EmbeddingsError, ModelCallError
from drpo_graph.events.emitter import Emitter
from drpo_graph.models.balancer import Balancer, Replica
from drpo_graph.models.capabilities import Address
from drpo_graph.models.clients import ModelClient
from drpo_graph.models.embedding import EMBEDDING_CALLER, EmbeddingTransport, read_vector
from drpo_graph.models.endpoint_gate import gate_for
from drpo_graph.models.outages import never_ends
from drpo_graph.models.request import Request
from drpo_graph.settings.settings import RoleSettings, Settings
from drpo_graph.storage.archive import Archive

_BATCH = 128
"""Texts of one request; OpenAI takes 2048, if they are short."""
_ADVICE = (
    "Check the key and the address (--embeddings-base-url URL; for a run that is resumed, "
    "--set embeddings_base_url=URL), or start the server, then resume."
)


@dataclass(frozen=True, slots=True)
class EmbeddingCalls:
    """One run's calls of embeddings models."""

    settings: Settings
    ledger: Ledger
    archive: Archive
    emitter: Emitter
    has_ended: Callable[[str], bool] = never_ends
    _channels: dict[Address, CallChannel] = field(default_factory=dict)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Have what is embedded at an endpoint meanwhile made as calls of the run."""
        token = EMBEDDING_CALLER.set(self)
        try:
            yield
        finally:
            EMBEDDING_CALLER.reset(token)

    async def embed(self, address: Address, texts: Sequence[str]) -> list[list[float]]:
        """Return the texts' vectors; those that the run has embedded before are not asked for again.

        Raises:
            EmbeddingsError: the endpoint cannot be used.
            RunInterruptedError: the run was asked to stop, or its budget is spent.
        """
        text_by_key = {_key_of(address, text): text for text in texts}
        found: dict[str, list[float]] = {}
        for key in text_by_key:
            if (vector := await self._recall(key)) is not None:
                found[key] = vector
        missing = [key for key in text_by_key if key not in found]
        for start in range(0, len(missing), _BATCH):
            some = missing[start : start + _BATCH]
            found.update(zip(some, await self._ask(address, some, text_by_key), strict=True))
        return [found[_key_of(address, text)] for text in texts]

    async def _recall(self, key: str) -> list[float] | None:
        place = await self.archive.get("vectors", key)
        stored = await self.archive.record("calls", str(place["call"]), CallRecord) if place is not None else None
        if place is None or stored is None:
            return None
        number = place["place"]
        assert isinstance(number, int)
        return read_vector(stored.choices[number].text)

    async def _ask(self, address: Address, keys: Sequence[str], text_by_key: dict[str, str]) -> list[list[float]]:
        channel = self._channel_of(address)
        request = Request(messages=[{"role": "user", "content": text_by_key[key]} for key in keys], max_tokens=0)
        call = channel.key_of(request)
        try:
            entry = await channel.call(call, request)
        except RefusedRequestError as error:
            failure = error.failure
            raise EmbeddingsError(
                f"The embeddings model {address.name!r} at {address.place} cannot be used ({failure.kind}: "
                f"{failure.message.rstrip('.')}). {_ADVICE}"
            ) from error
        except ModelCallError as error:
            raise EmbeddingsError(f"{error} {_ADVICE}") from error
        await self.archive.put_all("vectors", {key: {"call": call, "place": place} for place, key in enumerate(keys)})
        return [read_vector(choice.text) for choice in entry.record.choices]

    def _channel_of(self, address: Address) -> CallChannel:
        if address not in self._channels:
            settings = self.settings
            replica = Replica(
                endpoint=address.place,
                transport=EmbeddingTransport(address, timeout_s=settings.timeout_s),
                gate=partial(
                    gate_for,
                    address.base_url,
                    max_concurrency=settings.max_concurrency,
                    requests_per_second=settings.requests_per_second,
                ),
                secret=address.secret,
                address=address,
            )
            client = ModelClient("embeddings", RoleSettings(model=f"openai:{address.name}"), Balancer((replica,)))
            self._channels[address] = CallChannel(
                client=client,
                settings=settings,
                ledger=self.ledger,
                archive=self.archive,
                emitter=self.emitter,
                has_ended=self.has_ended,
            )
        return self._channels[address]


def _key_of(address: Address, text: str) -> str:
    # Where the model is served is no part of it: it may move. A lone surrogate, which JSON may bring, has no UTF-8.
    return hashlib.sha256(f"{address.name}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()
