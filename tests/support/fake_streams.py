"""Replies in parts, as OpenAI-compatible servers stream them: server-sent events of a few characters each."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web

PART_CHARS = 3
"""Short enough to cut every heading and stop in two."""


def stream_response(payload: Mapping[str, Any]) -> web.Response:
    """Return the answer in parts; all are sent at once, each as an event of its own."""
    lines = [f"data: {json.dumps(part)}\n\n" for part in parts_of(payload)]
    return web.Response(body="".join([*lines, "data: [DONE]\n\n"]).encode(), content_type="text/event-stream")


def parts_of(payload: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """Yield the parts of a whole answer: its text, why it ended, its usage."""
    is_chat = payload["object"] == "chat.completion"
    frame = {**payload, "object": "chat.completion.chunk" if is_chat else "text_completion"}
    usage = frame.pop("usage", None)
    for choice in payload["choices"]:
        for field, text in _texts_of(choice, is_chat=is_chat):
            for start in range(0, len(text), PART_CHARS):
                piece = text[start : start + PART_CHARS]
                said = {"delta": {"role": "assistant", field: piece}} if is_chat else {"text": piece}
                yield {**frame, "choices": [{"index": choice["index"], "finish_reason": None, **said}]}
        end = {"delta": {}} if is_chat else {"text": ""}
        reason = choice["finish_reason"]
        yield {**frame, "choices": [{"index": choice["index"], "finish_reason": reason, **end}]}
    if usage is not None:
        yield {**frame, "choices": [], "usage": usage}


def _texts_of(choice: Mapping[str, Any], *, is_chat: bool) -> list[tuple[str, str]]:
    if not is_chat:
        return [("text", choice["text"])]
    message = choice["message"]
    return [(field, message[field]) for field in ("content", "refusal") if message.get(field)]
