"""What goes wrong between a client and a server, byte for byte: one player per fault."""

import asyncio
import json
import zlib
from collections.abc import Callable, Iterable, Mapping

from tests.support.byte_server import Peer, Play

_REPLY: dict[str, object] = {
    "id": "1",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "text": "hello", "message": {"content": "hello"}, "finish_reason": "stop"}],
}
BODY = json.dumps(_REPLY)
_PARTS: list[dict[str, object]] = [
    {"id": "1", "choices": [{"index": 0, "delta": {"content": "hello"}, "text": "hello"}]},
    {"id": "1", "choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}]},
]
EVENTS = "".join(f"data: {json.dumps(part)}\n\n" for part in _PARTS) + "data: [DONE]\n\n"
_HANG_S = 3600.0


def whole(peer: Peer) -> tuple[bytes, str]:
    """Return a good answer to what was asked, and its kind."""
    is_stream = b'"stream":true' in peer.body.replace(b" ", b"")
    return (EVENTS.encode(), "text/event-stream") if is_stream else (BODY.encode(), "application/json")


def head(peer: Peer, *headers: str, status: str = "HTTP/1.1 200 OK", has_kind: bool = True) -> str:
    """Return the beginning of an answer."""
    kind = [f"Content-Type: {whole(peer)[1]}"] if has_kind else []
    return "\r\n".join([status, *kind, *headers, "", ""])


def sized(peer: Peer, *headers: str, more: int = 0, status: str = "HTTP/1.1 200 OK") -> str:
    """Return the beginning of an answer that says how long it is, or is wrong about it."""
    return head(peer, f"Content-Length: {len(whole(peer)[0]) + more}", *headers, status=status)


def says(make: Callable[[Peer], Iterable[str | bytes]], *, then_resets: bool = False) -> Play:
    """Return a player of what a function makes of the peer: texts and bytes."""

    async def play(peer: Peer) -> None:
        await peer.say(*make(peer))
        if then_resets:
            # What is on its way is lost with the connection.
            await asyncio.sleep(0.01)
            peer.reset()

    return play


def _with_headers(*headers: str) -> Play:
    return says(lambda peer: (sized(peer, *headers), whole(peer)[0]))


def _with_status(line: str) -> Play:
    return says(lambda peer: (sized(peer, status=line), whole(peer)[0]))


def _with_body(body: bytes, *headers: str) -> Play:
    return says(lambda peer: (head(peer, f"Content-Length: {len(body)}", *headers), body))


def _as_stream_or_not(plain: bytes) -> Play:
    """Return a player of a body, in an event where a stream was asked for."""

    def make(peer: Peer) -> tuple[str, bytes]:
        body = b"data: " + plain + b"\n\n" if "event" in whole(peer)[1] else plain
        return head(peer, f"Content-Length: {len(body)}"), body

    return says(make)


def _chunked(end: str, *, extension: str = "") -> Play:
    def make(peer: Peer) -> tuple[str | bytes, ...]:
        body, _ = whole(peer)
        first = b"%x%s\r\n%s\r\n" % (len(body), extension.encode(), body)
        return head(peer, "Transfer-Encoding: chunked"), first, end

    return says(make)


def _compressed(change: slice, *, damage: bool = False) -> Play:
    def make(peer: Peer) -> tuple[str, bytes]:
        compressor = zlib.compressobj(wbits=31)
        raw = (compressor.compress(whole(peer)[0]) + compressor.flush())[change]
        raw = raw[:20] + bytes(255 - byte for byte in raw[20:30]) + raw[30:] if damage else raw
        return head(peer, "Content-Encoding: gzip", f"Content-Length: {len(raw)}"), raw

    return says(make)


async def _reset(peer: Peer) -> None:
    peer.reset()


async def _redirect_in_a_circle(peer: Peer) -> None:
    headers = (f"Location: {peer.path}", "Content-Length: 0", "Connection: close")
    await peer.say(head(peer, *headers, status="HTTP/1.1 307 Temporary Redirect"))


async def _hang_up_early(peer: Peer) -> None:
    return


async def _hang(peer: Peer) -> None:
    await asyncio.sleep(_HANG_S)


async def _hang_in_headers(peer: Peer) -> None:
    await peer.say("HTTP/1.1 200 OK\r\nContent-Type: ")
    await asyncio.sleep(_HANG_S)


async def _hang_in_body(peer: Peer) -> None:
    await peer.say(sized(peer), whole(peer)[0][:10])
    await asyncio.sleep(_HANG_S)


async def _drip(peer: Peer) -> None:
    body, _ = whole(peer)
    await peer.say(sized(peer))
    step = len(body) // 10 + 1
    for start in range(0, len(body), step):
        await peer.say(body[start : start + step])
        await asyncio.sleep(0.005)


_TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x46"
_OTHER_HOST = "Location: http://localhost:1/v1/chat/completions"

PASSED: Mapping[str, Play] = {
    "as it should be": _with_headers(),
    "with another reason": _with_status("HTTP/1.1 200 Fine"),
    "without a reason": _with_status("HTTP/1.1 200"),
    "without a length": says(lambda peer: (head(peer, "Connection: close"), whole(peer)[0])),
    "as HTTP/1.0": _with_status("HTTP/1.0 200 OK"),
    "in chunks": _chunked("0\r\n\r\n"),
    "in chunks with an extension": _chunked("0\r\n\r\n", extension=";a=b"),
    "in chunks with a trailer": _chunked("0\r\nX-More: 1\r\n\r\n"),
    "compressed": _compressed(slice(None)),
    "after an early hint": says(
        lambda peer: ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 5, sized(peer), whole(peer)[0])
    ),
    "with a byte order mark": says(
        lambda peer: (
            (sized(peer, more=3), b"\xef\xbb\xbf", whole(peer)[0])
            if "json" in whole(peer)[1]
            else (sized(peer), whole(peer)[0])
        )
    ),
    "drop by drop": _drip,
    "with a hundred headers": _with_headers(*(f"X-{number}: a" for number in range(100))),
    "with a header of 7 KB": _with_headers("X-Long: " + "a" * 7000),
}
"""What is read all the same."""

NARROW: Mapping[str, Play] = {
    "with more than its length": says(lambda peer: (sized(peer, "Connection: close"), whole(peer)[0], "more")),
    "with the same length twice": says(
        lambda peer: (sized(peer, f"Content-Length: {len(whole(peer)[0])}"), whole(peer)[0])
    ),
    "with two hundred headers": _with_headers(*(f"X-{number}: a" for number in range(200))),
    "with a header of 9 KB": _with_headers("X-Long: " + "a" * 9000),
}
"""What ``httpx`` reads, and ``aiohttp`` takes for no HTTP."""

BROKEN: Mapping[str, Play] = {
    "closed at once": _hang_up_early,
    "reset at once": _reset,
    "closed in the status": says(lambda peer: ("HTTP/1.1 20",)),
    "closed in the headers": says(lambda peer: ("HTTP/1.1 200 OK\r\nContent-Ty",)),
    "reset in the headers": says(lambda peer: ("HTTP/1.1 200 OK\r\nContent-Ty",), then_resets=True),
    "closed after the headers": says(lambda peer: (sized(peer),)),
    "reset after the headers": says(lambda peer: (sized(peer),), then_resets=True),
    "closed in the body": says(lambda peer: (sized(peer, more=50), whole(peer)[0][:-20])),
    "reset in the body": says(lambda peer: (sized(peer, more=50), whole(peer)[0][:-20]), then_resets=True),
    "closed in a chunk": says(lambda peer: (head(peer, "Transfer-Encoding: chunked"), "ffff\r\n", "{")),
    "closed between chunks": says(lambda peer: (head(peer, "Transfer-Encoding: chunked"), "2\r\n{}\r\n")),
    "a chunk without a size": says(lambda peer: (head(peer, "Transfer-Encoding: chunked"), "xyz\r\n{}\r\n0\r\n\r\n")),
    "a chunk of negative size": says(lambda peer: (head(peer, "Transfer-Encoding: chunked"), "-5\r\n{}\r\n0\r\n\r\n")),
    "garbage": says(lambda peer: (bytes(range(1, 256)) * 20,)),
    "a page of HTTP/0.9": says(lambda peer: ("<html><body>hello</body></html>",)),
    "JSON without headers": says(lambda peer: (whole(peer)[0],)),
    "another protocol": says(lambda peer: ("SSH-2.0-OpenSSH_9.6\r\n",)),
    "TLS where there is none": says(lambda peer: (_TLS_ALERT,)),
    "a status in words": _with_status("HTTP/1.1 OK OK"),
    "a status of 99999": _with_status("HTTP/1.1 99999 OK"),
    "a length below zero": says(lambda peer: (head(peer, "Content-Length: -5"), whole(peer)[0])),
    "a length in words": says(lambda peer: (head(peer, "Content-Length: long"), whole(peer)[0])),
    "two lengths": says(lambda peer: (head(peer, "Content-Length: 5", "Content-Length: 7"), whole(peer)[0])),
    "a header without a colon": _with_headers("no colon here"),
    "a header with a zero byte": _with_headers("X-Odd: a\0b"),
    "headers of 200 KB": _with_headers("X-Long: " + "a" * 200_000),
    "no end of headers": says(lambda peer: ("HTTP/1.1 200 OK\r\n", *("X: a\r\n" for _ in range(50_000)))),
    "a switch of protocols": says(
        lambda peer: ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",)
    ),
}
"""What breaks the connection: asked for again."""

UNREAD: Mapping[str, Play] = {
    "nothing": _with_body(b""),
    "a status of 600": _with_status("HTTP/1.1 600 Odd"),
    "no content": says(lambda peer: ("HTTP/1.1 204 No Content\r\n\r\n",)),
    "not modified": says(lambda peer: ("HTTP/1.1 304 Not Modified\r\n\r\n",)),
    "gzip that is none": _with_headers("Content-Encoding: gzip"),
    "gzip that is damaged": _compressed(slice(None), damage=True),
    "gzip that is cut": _compressed(slice(-12)),
    "br": _with_headers("Content-Encoding: br"),
    "zstd": _with_headers("Content-Encoding: zstd"),
    "bytes that are no text": _as_stream_or_not(BODY.encode().replace(b"hello", b"\xff\xfe")),
    "a word": _as_stream_or_not(b"NaN"),
    "arrays in arrays": _as_stream_or_not(b"[" * 100_000),
    "half of it": _as_stream_or_not(BODY.encode()[:40]),
    "zero bytes": _with_body(b"\0" * 100),
}
"""What is no reply: asked for again."""

LATE: Mapping[str, Play] = {
    "no answer": _hang,
    "no end of its headers": _hang_in_headers,
    "no end of its body": _hang_in_body,
}

REDIRECTED: Mapping[str, Play] = {
    "in a circle": _redirect_in_a_circle,
    "to another host": says(
        lambda peer: (head(peer, _OTHER_HOST, "Content-Length: 0", status="HTTP/1.1 307 Temporary Redirect"),)
    ),
    "to no address": says(
        lambda peer: (
            head(peer, "Location: http://[::bad", "Content-Length: 0", status="HTTP/1.1 307 Temporary Redirect"),
        )
    ),
    "nowhere": says(lambda peer: (head(peer, "Content-Length: 0", status="HTTP/1.1 302 Found"),)),
    "to another protocol": says(
        lambda peer: (
            head(peer, "Location: ftp://127.0.0.1/", "Content-Length: 0", status="HTTP/1.1 307 Temporary Redirect"),
        )
    ),
}
"""Where no answer is."""
