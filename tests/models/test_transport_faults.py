"""What goes wrong on the wire has one meaning, whichever HTTP client sees it, and is never an error of ours."""

import asyncio
import json
from typing import Any

import pytest

from drpo_graph.models import http_json
from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import CallFailure, classify_failure
from drpo_graph.models.http_json import Wire
from tests.models.test_bounded_bodies import CALLS, ask, open_transport
from tests.support.byte_server import Play, RawServer, serve_raw
from tests.support.transport_faults import BROKEN, LATE, NARROW, PASSED, REDIRECTED, UNREAD

Outcome = str | tuple[str, str, bool]
"""A reply's text; or a failure's kind, its remedy, and whether nobody took the connection."""

LOST: Outcome = ("connection", "retry", False)
NO_REPLY: Outcome = ("malformed", "retry", False)


@pytest.fixture(params=["aiohttp", "httpx"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(http_json, "uses_socks", lambda: request.param == "httpx")
    return str(request.param)


def outcome_of(failure: CallFailure | None) -> Outcome:
    assert failure is not None
    assert failure.message
    assert "timed out. (" not in failure.message
    return (failure.kind, failure.remedy, failure.is_unreached)


async def outcome(server: RawServer, call: str, timeout_s: float) -> Outcome:
    try:
        return await ask(open_transport(server, timeout_s=timeout_s), call)
    except Exception as error:  # noqa: BLE001  # Whatever it is, it has to have a meaning.
        return outcome_of(classify_failure(error))


async def outcomes(play: Play, *, timeout_s: float = 30.0) -> dict[str, Outcome]:
    """Return what comes of each kind of call, all at once."""
    async with serve_raw(play) as server:
        found = await asyncio.gather(*(outcome(server, call, timeout_s) for call in CALLS))
    return dict(zip(CALLS, found, strict=True))


def for_all(expected: Outcome) -> dict[str, Outcome]:
    return dict.fromkeys(CALLS, expected)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("fault", PASSED)
async def test_what_is_odd_is_read(fault: str) -> None:
    assert await outcomes(PASSED[fault]) == for_all("hello")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", NARROW)
async def test_what_one_client_takes_for_no_http_is_read_at_the_next_try(fault: str, call: str, client: str) -> None:
    async with serve_raw(NARROW[fault]) as server, serve_raw(PASSED["as it should be"]) as other:
        first = await outcome(server, call, 30.0)
        assert first == ("hello" if client == "httpx" else LOST)
        assert [await outcome(one, call, 30.0) for one in (server, other, server)] == ["hello"] * 3


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("fault", NARROW)
async def test_a_look_at_a_server_reads_what_either_client_does(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_json, "_RESET_WAITS_S", (0.0,))
    async with serve_raw(NARROW[fault]) as server:
        answer = await Wire(Address(server.base_url, "m"), timeout_s=30).get("/models")
    assert isinstance(answer, dict)
    assert answer["model"] == "m"


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("fault", BROKEN)
async def test_what_is_no_http_is_a_lost_connection_and_no_refusal(fault: str) -> None:
    assert await outcomes(BROKEN[fault]) == for_all(LOST)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("fault", UNREAD)
async def test_what_is_no_reply_is_asked_for_again(fault: str) -> None:
    assert await outcomes(UNREAD[fault]) == for_all(NO_REPLY)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("fault", LATE)
async def test_what_does_not_come_in_time_is_a_time_out(fault: str) -> None:
    assert await outcomes(LATE[fault], timeout_s=0.5) == for_all(("timeout", "retry", False))


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("in a circle", "redirect"),
        ("to another protocol", "redirect"),
        ("to another host", "http_307"),
        ("nowhere", "http_302"),
    ],
)
async def test_a_redirect_that_leads_nowhere_stops_the_run(fault: str, kind: str) -> None:
    assert await outcomes(REDIRECTED[fault]) == for_all((kind, "stop", False))


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("fault", [*BROKEN, *UNREAD])
async def test_a_look_at_a_server_fails_in_the_same_way(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_json, "_RESET_WAITS_S", ())
    faults: dict[str, Any] = {**BROKEN, **UNREAD}
    async with serve_raw(faults[fault]) as server:
        answer = await Wire(Address(server.base_url, "m"), timeout_s=30).get("/models")
    assert isinstance(answer, CallFailure), json.dumps(answer)
    assert outcome_of(answer) == (LOST if fault in BROKEN else NO_REPLY)


@pytest.mark.usefixtures("client")
async def test_nobody_there_is_told_in_words_that_say_one_thing() -> None:
    async with serve_raw(PASSED["as it should be"]) as server:
        pass
    try:
        await ask(open_transport(server), "chat")
    except Exception as error:  # noqa: BLE001  # Whatever it is, it has to have a meaning.
        failure = classify_failure(error)
    assert outcome_of(failure) == ("connection", "retry", True)
