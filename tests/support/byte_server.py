"""A TCP server that says, byte for byte, what it is told to: what no HTTP server would."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

Play = Callable[["Peer"], Awaitable[None]]
"""Answers one request on a connection, which is closed after it."""


@dataclass
class Peer:
    """One connection: what was asked on it, and how to answer."""

    writer: asyncio.StreamWriter
    head: str = ""
    body: bytes = b""

    @property
    def path(self) -> str:
        """What was asked for."""
        return self.head.split(" ")[1]

    async def say(self, *parts: str | bytes) -> None:
        """Send texts as they are."""
        for part in parts:
            self.writer.write(part.encode() if isinstance(part, str) else part)
        await self.writer.drain()

    async def answer(self, body: str | bytes, *headers: str, status: str = "200 OK", kind: str = "json") -> None:
        """Send a whole answer."""
        raw = body.encode() if isinstance(body, str) else body
        kinds = {"json": "application/json", "events": "text/event-stream", "html": "text/html"}
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kinds[kind]}", f"Content-Length: {len(raw)}", *headers]
        await self.say("\r\n".join([*lines, "Connection: close", "", ""]), raw)

    async def pour(self, piece: bytes, *headers: str, num: int | None = None, status: str = "200 OK") -> None:
        """Send a body in chunks of one piece, again and again until nobody reads; or so many times."""
        lines = [f"HTTP/1.1 {status}", "Transfer-Encoding: chunked", *headers, "", ""]
        await self.say("\r\n".join(lines))
        chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
        while num is None or num > 0:
            await self.say(chunk)
            num = None if num is None else num - 1
        await self.say("0\r\n\r\n")

    def reset(self) -> None:
        """Cut the connection, without a word of goodbye."""
        own = self.writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class RawServer:
    """Where it listens, and what it was asked."""

    port: int = 0
    asked: list[str] = field(default_factory=list)
    """The first line of each request."""

    @property
    def base_url(self) -> str:
        """For a client's settings."""
        return f"http://127.0.0.1:{self.port}/v1"


@contextlib.asynccontextmanager
async def serve_raw(play: Play) -> AsyncIterator[RawServer]:
    """Answer each request by a function, until the block ends."""
    server = RawServer()
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(writer)
        # Nothing waits for this task but the end of the block.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            peer.head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next((line for line in peer.head.lower().split("\r\n") if line.startswith("content-length:")), "")
            peer.body = await reader.readexactly(int(length.partition(":")[2] or 0))
            server.asked.append(peer.head.partition("\r\n")[0])
            await play(peer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            writer.close()
            await writer.wait_closed()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
