"""One JSON request: its body, or what failed, without the key; so many at a time and no longer than told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from drpo_graph.models import http_json
from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import CallFailure
from drpo_graph.models.http_json import Wire

KEY = "sk-canary-8c1f0a77b2d94e"
HTML, JSON = "text/html", "application/json"


@asynccontextmanager
async def wire_to(
    answer: Callable[[web.Request], Awaitable[web.Response]], *, timeout_s: float = 10.0
) -> AsyncIterator[Wire]:
    """Open a wire to a server that gives this answer whatever it is asked."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = Address(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m", KEY)
    try:
        yield Wire(address, timeout_s=timeout_s)
    finally:
        await runner.cleanup()


async def test_body_comes_back_from_the_api_and_from_the_root_with_the_key_sent() -> None:
    sent: list[str] = []

    async def echo(request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        sent.append(request.headers["Authorization"])
        return web.json_response({"path": request.path, "body": body, "key": sent[-1]})

    # A key that a server repeats is blotted out.
    hidden = f"Bearer {'*' * len(KEY)}"
    async with wire_to(echo) as wire:
        assert await wire.get("/models") == {"path": "/v1/models", "body": None, "key": hidden}
        posted = await wire.post(f"{wire.address.root}/tokenize", {"prompt": "a"})
    assert posted == {"path": "/tokenize", "body": {"prompt": "a"}, "key": hidden}
    assert sent == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize(
    ("status", "text", "content_type", "kind"),
    [
        (200, "<html>hello</html>", HTML, "malformed"),
        (200, "{broken", JSON, "malformed"),
        (200, "[1]", JSON, "malformed"),
        (200, "", JSON, "malformed"),
        (404, '{"detail":"Not Found"}', JSON, "http_404"),
        (502, "<html>bad gateway</html>", HTML, "http_502"),
        (401, f'{{"error": {{"message": "the key {KEY} is wrong"}}}}', JSON, "http_401"),
    ],
)
async def test_anything_but_an_object_is_a_failure_without_the_key(
    status: int, text: str, content_type: str, kind: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, content_type=content_type)

    async with wire_to(answer) as wire:
        failure = await wire.post("/chat/completions", {})
    assert isinstance(failure, CallFailure)
    assert failure.kind == kind
    assert failure.message
    assert KEY not in failure.message


async def test_no_more_than_four_requests_are_under_way_and_none_waits_longer_than_told() -> None:
    released, under_way, most = asyncio.Event(), 0, 0

    async def wait(request: web.Request) -> web.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == 4:
            released.set()
        await released.wait()
        await asyncio.sleep(0)
        under_way -= 1
        return web.json_response({})

    async with wire_to(wait) as wire:
        assert await asyncio.gather(*(wire.get("/models") for _ in range(12))) == [{}] * 12
    assert most == 4

    async def hang(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with wire_to(hang, timeout_s=0.2) as wire:
        late = await wire.get("/models")
    assert isinstance(late, CallFailure)
    assert late.kind == "timeout"


@pytest.mark.parametrize("client", ["httpx", "aiohttp"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_prompts_are_not_sent_on_to_another_host(
    status: int, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_json, "uses_socks", lambda: client == "httpx")
    seen: list[str] = []

    async def send_on(request: web.Request) -> web.Response:
        seen.append(request.host.partition(":")[0])
        if request.path.startswith("/v1/far"):
            return web.Response(status=status, headers={"Location": f"http://localhost:{request.url.port}/v1/here"})
        if request.path.startswith("/v1/near"):
            return web.Response(status=status, headers={"Location": "/v1/here"})
        return web.json_response({"method": request.method})

    async with wire_to(send_on) as wire:
        near, far = await wire.post("/near", {"prompt": "a"}), await wire.post("/far", {"prompt": "a"})
    assert near == {"method": "POST" if status > 303 else "GET"}
    assert isinstance(far, CallFailure)
    assert (far.kind, far.remedy) == (f"http_{status}", "stop")
    assert "another host" in far.message
    assert seen == ["127.0.0.1"] * 3


@pytest.mark.parametrize("client", ["httpx", "aiohttp"])
@pytest.mark.parametrize("num_cut", [1, 2, 3])
async def test_a_connection_that_is_cut_is_opened_again(
    num_cut: int, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_json, "uses_socks", lambda: client == "httpx")
    monkeypatch.setattr(http_json, "_RESET_WAITS_S", (0.0, 0.0))
    num_asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal num_asked
        num_asked += 1
        if num_asked <= num_cut:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"is": "well"})

    async with wire_to(answer) as wire:
        told = await wire.post("/chat/completions", {})
    assert num_asked == min(num_cut + 1, 3)
    assert (told == {"is": "well"}) == (num_cut < 3)
