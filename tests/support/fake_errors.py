"""Errors in the forms in which servers give them."""

import json
from collections.abc import Callable, Mapping
from typing import Literal, cast, get_args

from aiohttp import web

ErrorForm = Literal[
    "openai",
    "text_error",
    "list_of_errors",
    "detail_text",
    "detail_list",
    "message_text",
    "message_object",
    "capital_message",
    "errors_list",
    "errors_by_field",
    "beside_status",
    "within",
    "plain",
    "page",
]
ERROR_FORMS: tuple[ErrorForm, ...] = get_args(ErrorForm)


def _page(message: str) -> str:
    style = "<style>body { max-width: 30em; context-length: 1 }</style>"
    return f"<html><head><title>Error</title>{style}</head><body><h1>Error</h1><p>{message}</p></body></html>"


_LOCATED = {"type": "value_error", "loc": ["body", "messages", 0]}
_BODIES: Mapping[ErrorForm, Callable[[str], object]] = {
    # Ollama, Text Generation Inference.
    "text_error": lambda said: {"error": said, "error_type": "validation"},
    # Google.
    "list_of_errors": lambda said: [{"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}}],
    # FastAPI.
    "detail_text": lambda said: {"detail": said},
    "detail_list": lambda said: {"detail": [{**_LOCATED, "msg": said, "input": "response_format, maximum length"}]},
    # Cohere.
    "message_text": lambda said: {"message": said, "id": "3f2a"},
    # Mistral.
    "message_object": lambda said: {
        "object": "error",
        "message": {"detail": [{**_LOCATED, "msg": said}]},
        "code": None,
    },
    # Amazon.
    "capital_message": lambda said: {"Message": said},
    "errors_list": lambda said: {"success": False, "errors": [{"code": 7003, "message": said}], "messages": []},
    "errors_by_field": lambda said: {"title": "One or more faults.", "errors": {"Messages": [said]}, "traceId": "00-1"},
    "beside_status": lambda said: {"statusCode": 400, "error": "Bad Request", "message": said},
    # A router that hands a provider's answer on.
    "within": lambda said: {
        "error": {"message": "Provider returned error", "metadata": {"raw": json.dumps({"error": {"message": said}})}}
    },
}


def in_form(response: web.Response, form: ErrorForm) -> web.Response:
    """Return an error in OpenAI's form in another one; whatever else it is, as it is."""
    if response.status < 400 or form == "openai":
        return response
    said = str(cast(str, json.loads(response.text or "")["error"]["message"]))
    if form in ("plain", "page"):
        text, kind = (said, "text/plain") if form == "plain" else (_page(said), "text/html")
    else:
        text, kind = json.dumps(_BODIES[form](said)), "application/json"
    kept = {name: value for name, value in response.headers.items() if not name.startswith("Content-")}
    return web.Response(status=response.status, text=text, content_type=kind, headers=kept)
