"""A small server of Anthropic's Messages API on 127.0.0.1: what it says, a ``Responder`` of chats says."""

import json
from collections.abc import Mapping
from typing import Any, Self

from aiohttp import web

from tests.support.fake_options import ServerOptions
from tests.support.fake_replies import Responder
from tests.support.fake_terms import refuse_fields


class FakeAnthropic:
    """The server; an asynchronous context manager. Of the options, those on refused fields and on thinking hold."""

    def __init__(self, responder: Responder, options: ServerOptions) -> None:
        self.finished: list[dict[str, Any]] = []
        """Status and body of every request."""
        self._responder = responder
        self._options = options
        app = web.Application()
        app.router.add_post("/v1/messages", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def base_url(self) -> str:
        """What ``ANTHROPIC_BASE_URL`` should be."""
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _handle(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        response = refuse_fields(body, self._options) or self._answer(body)
        self.finished.append({"status": response.status, "body": body})
        return response

    def _answer(self, body: Mapping[str, Any]) -> web.Response:
        system = [{"role": "system", "content": body["system"]}] if "system" in body else []
        reply = self._responder({**body, "messages": [*system, *body["messages"]], "stop": body.get("stop_sequences")})
        num_thought = min(self._options.num_reasoning_tokens, body["max_tokens"])
        is_cut = num_thought == body["max_tokens"]
        text = "" if is_cut else reply.texts[0]
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": text}],
            "stop_reason": "max_tokens" if is_cut else "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 9,
                "output_tokens": num_thought + len(text.split()),
                "output_tokens_details": {"thinking_tokens": num_thought},
            },
        }
        return _stream(message) if body.get("stream") else web.json_response(message)


def _stream(message: Mapping[str, Any]) -> web.Response:
    begun = {**message, "content": [], "stop_reason": None}
    said = {"type": "text_delta", "text": message["content"][0]["text"]}
    ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": said},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ended, "usage": message["usage"]},
        {"type": "message_stop"},
    ]
    lines = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events]
    return web.Response(body="".join(lines).encode(), content_type="text/event-stream")
