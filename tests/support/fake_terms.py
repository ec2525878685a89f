"""The terms on which the fake server takes requests, as models that reason have them."""

import json
from collections.abc import Mapping
from typing import Any, cast

from aiohttp import web

from tests.support.fake_options import ServerOptions
from tests.support.fake_replies import error_response

_OTHER_LIMIT = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


def refuse_fields(body: Mapping[str, object], options: ServerOptions) -> web.Response | None:
    """Return the error for the first field of a request that the model does not take."""
    for refused in options.refuses:
        names = refused.split("+")
        if all(body.get(name) is not None and not _is_default(name, body[name]) for name in names):
            return _REFUSALS[options.refuses_like](names, body)
    return None


def _is_default(name: str, value: object) -> bool:
    return name == "temperature" and value == 1


def _like_openai(names: list[str], body: Mapping[str, object]) -> web.Response:
    (name,) = names
    if name == "temperature":
        message = (
            f"Unsupported value: 'temperature' does not support {body[name]} with this model. "
            "Only the default (1) value is supported."
        )
        return error_response(400, message, code="unsupported_value", param=name)
    instead = f" Use '{_OTHER_LIMIT[name]}' instead." if name in _OTHER_LIMIT else ""
    message = f"Unsupported parameter: '{name}' is not supported with this model.{instead}"
    return error_response(400, message, code="unsupported_parameter", param=name)


def _like_anthropic(names: list[str], body: Mapping[str, object]) -> web.Response:
    joined = " and ".join(f"`{name}`" for name in names)
    what = "is deprecated" if len(names) == 1 else "cannot both be specified"
    message = f"{joined} {what} for this model."
    if names == ["output_config"]:
        message = "This model does not support the effort parameter."
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    return _respond(400, error)


def _like_mistral(names: list[str], body: Mapping[str, object]) -> web.Response:
    faults = [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": body[name]}
        for name in names
    ]
    return _respond(422, {"detail": faults})


def _in_words(names: list[str], body: Mapping[str, object]) -> web.Response:
    return _respond(400, {"error": {"message": f"The model does not support the field {', '.join(map(repr, names))}."}})


def _respond(status: int, body: Mapping[str, object]) -> web.Response:
    return web.Response(status=status, text=json.dumps(body), content_type="application/json")


_REFUSALS = {"openai": _like_openai, "anthropic": _like_anthropic, "mistral": _like_mistral, "words": _in_words}


def think(payload: dict[str, object], body: Mapping[str, object], *, options: ServerOptions) -> dict[str, object]:
    """Return the answer after the model has thought: nothing is left to say where its tokens do not suffice."""
    num_thought = options.num_reasoning_tokens
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if not num_thought or not isinstance(limit, int):
        return payload
    usage = cast(dict[str, Any], payload["usage"])
    if limit <= num_thought:
        num_thought, usage["completion_tokens"] = limit, 0
        for choice in cast(list[dict[str, Any]], payload["choices"]):
            choice["finish_reason"] = "length"
            if "message" in choice:
                choice["message"]["content"] = ""
    usage["completion_tokens"] += num_thought
    usage["completion_tokens_details"] = {"reasoning_tokens": num_thought}
    return payload
