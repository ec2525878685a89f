"""A proxy before a good server: the first answer to each fifth request is an attack; the path names which one."""

import asyncio
import hashlib
import json
import logging
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import aiohttp

from tests.support.byte_server import Peer, Play, serve_raw
from tests.support.odd_answers import BODIES, FIELDS, Spoil
from tests.support.transport_faults import BROKEN, LATE, UNREAD

RATE = 0.2
_PIECE = b"a" * 65_536
_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

Attack = Callable[[Peer, bytes], Awaitable[None]]
"""Answers a request; given the answer that a good server has for it."""


def _as_attack(spoil: Spoil) -> Attack:
    async def attack(peer: Peer, good: bytes) -> None:
        await peer.answer(spoil(json.loads(good)))

    return attack


def _played(play: Play) -> Attack:
    async def attack(peer: Peer, good: bytes) -> None:
        await play(peer)

    return attack


async def _bomb(peer: Peer, good: bytes) -> None:
    compressor = zlib.compressobj(wbits=31)
    raw = b"".join(compressor.compress(b" " * 2**20) for _ in range(1_500)) + compressor.flush()
    await peer.answer(raw, "Content-Encoding: gzip")


async def _pour(peer: Peer, good: bytes) -> None:
    await peer.say(f"{_HEAD}\r\n", b'{"choices": "')
    while not peer.writer.is_closing():
        await peer.say(_PIECE)


async def _tell_50_mb(peer: Peer, good: bytes) -> None:
    answer = json.loads(good)
    choice = answer["choices"][0]
    if "message" in choice:
        choice["message"]["content"] = "a" * 50_000_000
    else:
        choice["text"] = "a" * 50_000_000
    await peer.answer(json.dumps(answer))


def _refuse(status: int, message: str, *headers: str) -> Attack:
    async def attack(peer: Peer, good: bytes) -> None:
        await peer.answer(json.dumps({"error": {"message": message}}), *headers, status=f"{status} No")

    return attack


_STATUSES: Mapping[str, Attack] = {
    "status 429": _refuse(429, "Rate limit reached", "Retry-After: 0.05"),
    **{f"status {status}": _refuse(status, "overloaded") for status in (408, 409, 425, 500, 502, 503, 504, 529)},
}
WIRE: Mapping[str, Attack] = {
    **{name: _played(play) for name, play in {**BROKEN, **UNREAD, "no answer": LATE["no answer"]}.items()},
    **_STATUSES,
}
LARGE: Mapping[str, Attack] = {"a gzip bomb of 1.5 GB": _bomb, "without end": _pour, "a text of 50 MB": _tell_50_mb}
ATTACKS: Mapping[str, Attack] = {
    **WIRE,
    **LARGE,
    **{f"answer: {name}": _as_attack(spoil) for name, spoil in BODIES.items()},
    **{f"field: {name}": _as_attack(spoil) for name, spoil in FIELDS.items()},
}
SLUGS = {name: "".join(letter if letter.isalnum() else "-" for letter in name) for name in ATTACKS}
"""What stands in the URL, ``/TRIAL/SLUG/v1``."""
_BY_SLUG = {slug: ATTACKS[name] for name, slug in SLUGS.items()}


class HostileProxy:
    """Hands requests on, and attacks some of the answers."""

    def __init__(self, base_url: str) -> None:
        self._upstream = base_url.removesuffix("/v1")
        self._session: aiohttp.ClientSession | None = None
        self._arrivals: Counter[str] = Counter()

    async def play(self, peer: Peer) -> None:
        """Answer one request."""
        _, trial, slug, rest = peer.path.split("/", 3)
        verb = peer.head.split(" ")[0]
        self._session = self._session or aiohttp.ClientSession()
        async with self._session.request(
            verb, f"{self._upstream}/{rest}", data=peer.body or None, headers={"Content-Type": "application/json"}
        ) as answer:
            good, status = await answer.read(), answer.status
        digest = hashlib.sha256(f"{trial}/{rest}".encode() + peer.body)
        self._arrivals[digest.hexdigest()] += 1
        is_first = self._arrivals[digest.hexdigest()] == 1
        if verb == "POST" and slug != "none" and is_first and digest.digest()[0] < RATE * 256:
            await _BY_SLUG[slug](peer, good)
        else:
            await peer.answer(good, status=f"{status} OK")


async def serve_hostile(base_url: str, tell_port: Callable[[int], None]) -> None:
    """Serve until the task is cancelled."""
    # Of clients that go away in the middle of an answer, as they should.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    async with serve_raw(HostileProxy(base_url).play) as server:
        tell_port(server.port)
        await asyncio.Event().wait()
