"""An answer without end, or one that is little on the wire and much in memory, is a failed try and costs no memory."""

import asyncio
import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drpo_graph.errors import EmbeddingsError
from drpo_graph.models import bounded_bodies, http_json, transport
from drpo_graph.models.bounded_bodies import OverlongReplyError, find_bound
from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import CallFailure, MalformedReplyError, classify_failure
from drpo_graph.models.http_json import CompletionsClient, Wire
from drpo_graph.models.openai_clients import open_chat
from drpo_graph.models.request import Request
from drpo_graph.models.transport import OpenAITransport
from drpo_graph.retrieval import make_embeddings
from tests.support.byte_server import Peer, RawServer, serve_raw
from tests.support.roles import QUESTION

GZIP, JSON, EVENTS = "Content-Encoding: gzip", "Content-Type: application/json", "Content-Type: text/event-stream"
COMPLETION = {"choices": [{"index": 0, "text": "hello", "message": {"content": "hello"}, "finish_reason": "stop"}]}
CALLS = ("chat", "completions", "chat stream", "completions stream")


@pytest.fixture(params=["aiohttp", "httpx"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(http_json, "uses_socks", lambda: request.param == "httpx")
    return str(request.param)


@pytest.fixture
def low_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_bodies, "_FLOOR_BYTES", 100_000)
    monkeypatch.setattr(bounded_bodies, "_ERROR_BYTES", 10_000)
    monkeypatch.setattr(transport, "_FREE_PIECES", 1_000_000)


def compress(data: bytes, wbits: int = 31) -> bytes:
    compressor = zlib.compressobj(wbits=wbits)
    return compressor.compress(data) + compressor.flush()


def open_transport(server: RawServer, *, max_reply_mb: float | None = None, timeout_s: float = 20.0) -> OpenAITransport:
    address, options = Address(server.base_url, "m"), {"timeout_s": timeout_s, "max_reply_mb": max_reply_mb}
    return OpenAITransport(
        lambda: open_chat(address, **options),  # type: ignore[arg-type]
        lambda: CompletionsClient(address, **options),  # type: ignore[arg-type]
    )


async def ask(own: OpenAITransport, call: str, **fields: Any) -> str:
    """Return the text of the reply to one request: to chat or completions, as a stream or not."""
    endpoint, _, is_stream = call.partition(" ")
    request = Request(QUESTION, endpoint=endpoint, **{"max_tokens": 10, **fields})  # type: ignore[arg-type]
    if is_stream:
        return "".join([piece.text async for piece in own.stream(request)])
    return (await own.send(request)).choices[0].text


ENDLESS = {
    "text": (b'{"choices": "' + b"a" * 5000, JSON),
    "spaces": (b" " * 5000, JSON),
    "events": (b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "text": "a"}]}\n\n', EVENTS),
    "comments": (b": still there\n\n", EVENTS),
    "one event": (b"data: aaaaa", EVENTS),
}


@pytest.mark.usefixtures("low_bound", "client")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ENDLESS)
async def test_an_answer_without_end_is_a_failed_try_that_says_what_to_do(kind: str, call: str) -> None:
    piece, header = ENDLESS[kind]

    async def play(peer: Peer) -> None:
        await peer.pour(piece * 20, header)

    async with serve_raw(play) as server:
        with pytest.raises(OverlongReplyError) as caught:
            await ask(open_transport(server), call)
    failure = classify_failure(caught.value)
    assert failure is not None
    assert (failure.kind, failure.remedy) == ("malformed", "retry")
    assert "longer than 0.12 MB" in failure.message
    assert "max_reply_mb" in failure.message


@pytest.mark.usefixtures("low_bound", "client")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15), ("deflate", -15), ("x-gzip", 31)])
async def test_what_is_little_on_the_wire_is_counted_as_it_is_decompressed(
    encoding: str, wbits: int, call: str
) -> None:
    bomb = compress(b"data: " + b" " * 5_000_000, wbits)
    assert len(bomb) < 10_000

    async def play(peer: Peer) -> None:
        await peer.answer(bomb, f"Content-Encoding: {encoding}")

    async with serve_raw(play) as server:
        with pytest.raises(OverlongReplyError):
            await ask(open_transport(server), call)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("call", ["chat", "completions"])
@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15), ("deflate", -15), ("identity", 0)])
async def test_a_compressed_reply_is_read_however_it_is_cut(encoding: str, wbits: int, call: str) -> None:
    text = "".join(chr(97 + place * place % 26) for place in range(200_000))
    body = json.dumps({"choices": [{"text": text, "message": {"content": text}, "finish_reason": "stop"}]}).encode()
    raw = compress(body, wbits) if wbits else body

    async def play(peer: Peer) -> None:
        lines = ["HTTP/1.1 200 OK", JSON, f"Content-Encoding: {encoding}", f"Content-Length: {len(raw)}", "", ""]
        await peer.say("\r\n".join(lines))
        for start in range(0, len(raw), 777):
            await peer.say(raw[start : start + 777])

    async with serve_raw(play) as server:
        assert await ask(open_transport(server), call) == text


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("body", "encoding", "told"),
    [
        (json.dumps(COMPLETION).encode(), "gzip", "cannot be decompressed"),
        (compress(json.dumps(COMPLETION).encode())[:-9], "gzip", "breaks off"),
        (compress(compress(json.dumps(COMPLETION).encode())), "gzip, gzip", "nobody asked for"),
        (b"\x0b\x02\x80hello\x03", "br", "'br'"),
        (b"\x28\xb5\x2f\xfd", "zstd", "'zstd'"),
    ],
    ids=["plain", "cut", "twice", "br", "zstd"],
)
async def test_what_cannot_be_decompressed_is_told(body: bytes, encoding: str, told: str) -> None:
    async def play(peer: Peer) -> None:
        await peer.answer(body, f"Content-Encoding: {encoding}")

    async with serve_raw(play) as server:
        with pytest.raises(MalformedReplyError, match=told):
            await ask(open_transport(server), "chat")


@pytest.mark.usefixtures("low_bound", "client")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("header", [JSON, GZIP, "Content-Encoding: br"])
async def test_the_status_of_an_error_counts_however_long_its_body_is(header: str, call: str) -> None:
    async def play(peer: Peer) -> None:
        await peer.pour(b"so busy " * 1000, header, status="503 Service Unavailable")

    async with serve_raw(play) as server:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await ask(open_transport(server), call)
    failure = classify_failure(caught.value)
    assert failure is not None
    assert failure.kind == "http_503"


@pytest.mark.usefixtures("client")
async def test_the_bound_follows_the_request_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_bodies, "_FLOOR_BYTES", 1000)
    body = json.dumps({**COMPLETION, "padding": "x" * 50_000})

    async def play(peer: Peer) -> None:
        await peer.answer(body)

    async with serve_raw(play) as server:
        for call in ("chat", "completions"):
            with pytest.raises(OverlongReplyError):
                await ask(open_transport(server), call, max_tokens=2)
            assert await ask(open_transport(server), call, max_tokens=2, num_samples=40) == "hello"
            assert await ask(open_transport(server), call, max_tokens=200) == "hello"
            assert await ask(open_transport(server, max_reply_mb=0.06), call, max_tokens=2) == "hello"
            with pytest.raises(OverlongReplyError, match=r"longer than 0\.04 MB"):
                await ask(open_transport(server, max_reply_mb=0.04), call, max_tokens=200)


def test_bound_allows_for_all_that_a_request_asks_for() -> None:
    least = find_bound(None)
    assert least == find_bound([]) == find_bound({"max_tokens": "many", "n": None, "input": "text"})
    plain = find_bound({"max_tokens": 1000}) - least
    assert find_bound({"max_completion_tokens": 1000}) - least == plain > 0
    assert find_bound({"max_tokens": 1000, "n": 3}) - least == 3 * plain
    assert find_bound({"max_tokens": 1000, "logprobs": True}) - least > 3 * plain
    assert find_bound({"input": ["a"] * 10}) > least


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("call", ["chat stream", "completions stream"])
async def test_a_stream_has_no_more_pieces_than_its_tokens_allow_for(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_FREE_PIECES", 5)
    part = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "text": "a"}]}\n\n'

    async def play(peer: Peer) -> None:
        await peer.pour(part, EVENTS)

    async with serve_raw(play) as server:
        with pytest.raises(MalformedReplyError, match="does not end at max_tokens=10"):
            await ask(open_transport(server), call)


@pytest.mark.usefixtures("low_bound", "client")
async def test_answers_to_a_look_at_a_server_are_bounded_too() -> None:
    async def play(peer: Peer) -> None:
        await peer.pour(b" " * 5000, JSON)

    async with serve_raw(play) as server:
        wire = Wire(Address(server.base_url, "m"), timeout_s=20)
        for answer in (await wire.get("/models"), await wire.post("/tokenize", {})):
            assert isinstance(answer, CallFailure)
            assert answer.kind == "malformed"
            assert "longer than" in answer.message


@pytest.mark.usefixtures("client")
async def test_embeddings_are_bounded_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_bodies, "_FLOOR_BYTES", 1000)
    monkeypatch.setattr(bounded_bodies, "_BYTES_PER_VECTOR", 1000)

    async def play(peer: Peer) -> None:
        await peer.pour(b" " * 5000, JSON)

    async with serve_raw(play) as server:
        embeddings = make_embeddings("openai:m", base_url=server.base_url)
        with pytest.raises(EmbeddingsError, match=r"longer than 0\.003 MB"):
            await embeddings.aembed_documents(["a", "b"])
        with pytest.raises(EmbeddingsError, match=r"longer than 0\.003 MB"):
            await asyncio.to_thread(embeddings.embed_documents, ["a", "b"])


# Memory

MAX_PEAK_MB = 400
PROGRAM = """
import asyncio, re, sys
from pathlib import Path
from drpo_graph.models import http_json
from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import classify_failure
from drpo_graph.models.http_json import CompletionsClient, Wire
from drpo_graph.models.openai_clients import open_chat
from drpo_graph.models.request import Request
from drpo_graph.models.transport import OpenAITransport
from drpo_graph.retrieval import make_embeddings

client, url, *paths = sys.argv[1:]
http_json.uses_socks = lambda: client == "httpx"

async def fail(asking):
    try:
        await asking
    except Exception as error:
        print(type(error).__name__, end=" ")

async def read(stream):
    async for _ in stream:
        pass

async def main():
    for path in paths:
        address = Address(f"{url}/{path}", "m")
        transport = OpenAITransport(
            lambda: open_chat(address, timeout_s=60.0), lambda: CompletionsClient(address, timeout_s=60.0)
        )
        for endpoint in ("chat", "completions"):
            request = Request([{"role": "user", "content": "hi"}], endpoint=endpoint)
            await fail(transport.send(request))
            await fail(read(transport.stream(request)))
        await fail(Wire(address, timeout_s=60.0).get("/models"))
        embeddings = make_embeddings("openai:m", base_url=address.base_url)
        await fail(embeddings.aembed_documents(["a"]))
        await fail(asyncio.to_thread(embeddings.embed_documents, ["a"]))
        # Not getrusage: that one begins with what the process had that started this one.
        peak_kb = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
        print(path, int(peak_kb) // 1024)

asyncio.run(main())
"""


@contextmanager
def serve_monsters() -> Iterator[str]:
    """Serve, on a thread of this process, answers that are gigabytes long."""
    spaces = b" " * 1_000_000
    compressor = zlib.compressobj(wbits=31)
    bomb = b"".join([compressor.compress(b"data: "), *(compressor.compress(spaces) for _ in range(500))])

    async def play(peer: Peer) -> None:
        if "bomb" in peer.path:
            await peer.answer(bomb, GZIP)
        elif "error" in peer.path:
            await peer.pour(spaces, JSON, status="400 Bad Request")
        elif "events" in peer.path:
            await peer.pour(b'data: {"choices": [{"delta": {"content": "a"}, "text": "a"}]}\n\n' * 100, EVENTS)
        elif "line" in peer.path:
            await peer.pour(b"data: " + spaces, EVENTS)
        elif "long" in peer.path:
            await peer.pour(spaces, JSON, num=50)
        elif "objects" in peer.path:
            await peer.answer(b'{"data": [' + b"{}," * 2_600_000 + b"{}]}")
        else:
            await peer.pour(b'"' + spaces, JSON)

    started, ended = threading.Event(), threading.Event()
    urls: list[str] = []

    async def live() -> None:
        async with serve_raw(play) as server:
            urls.append(f"http://127.0.0.1:{server.port}")
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(live(),), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield urls[0]
    finally:
        ended.set()
        thread.join(30)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peak of memory")
@pytest.mark.parametrize("client", ["aiohttp", "httpx"])
def test_no_answer_takes_more_memory_than_a_run_has(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    kinds = ["bomb", "endless", "long", "line", "events", "error", "objects"]
    with serve_monsters() as url:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, client, url, *kinds], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert [words[-2] for words in told] == kinds
    # Each of six ways to ask has failed; a wire returns what went wrong.
    assert [len(words) for words in told] == [6 + 2] * len(kinds), done.stdout
    assert all(int(words[-1]) < MAX_PEAK_MB for words in told), done.stdout
