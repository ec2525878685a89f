"""What the fake server answers to capability probes: the truth about its options, whatever its responder says."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import cast

from aiohttp import web

from drpo_graph.models.capabilities import PROBE_TEXT
from tests.support.fake_options import ServerOptions
from tests.support.fake_replies import (
    CREATED,
    Reply,
    error_response,
    has_tools,
    json_response,
    messages_of,
    prompts_of,
    text_of,
)

NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)
_PLAIN = "one two three four five six seven eight nine ten"
_unseeded = itertools.count()


def is_probe(body: Mapping[str, object]) -> bool:
    """Return whether the request's last user message, or its prompt, is a probe's."""
    asked = [text_of(one.get("content")) for one in messages_of(body) or [] if one.get("role") == "user"]
    return bool(asked or prompts_of(body)) and (asked or prompts_of(body) or [""])[-1].startswith(PROBE_TEXT)


def features_of(body: Mapping[str, object]) -> set[str]:
    """Return what a request asks for: ``chat`` or ``completions``, and parameters; ``plain`` where it has none."""
    asked = {name for name in ("n", "stop", "seed", "logprobs", "tools") if body.get(name)}
    if isinstance(form := body.get("response_format"), dict):
        asked.add(str(form["type"]))
    if any(one.get("role") == "system" for one in messages_of(body) or []):
        asked.add("system")
    return (asked or {"plain"}) | {"chat" if "messages" in body else "completions"}


def objection_to_probe(body: Mapping[str, object], options: ServerOptions) -> web.Response | None:
    """Return the error that the options have for a probe."""
    for feature in sorted(features_of(body) & set(options.probe_errors)):
        status = options.probe_errors[feature]
        message = f"Unsupported parameter: '{feature}'." if status < 429 else "Not now."
        return error_response(status, message, param=feature if status == 400 else None)
    return None


def probe_reply(body: dict[str, object], options: ServerOptions) -> Reply:
    """Return what the server's model says to a probe."""
    form = cast(dict[str, object], body.get("response_format") or {"type": "text"})
    if form["type"] == "json_schema" and not options.ignores_schema:
        named = cast(dict[str, dict[str, object]], form["json_schema"])
        return Reply([_fill(cast(dict[str, object], named["schema"]))])
    if form["type"] == "json_object" and not options.ignores_json_mode:
        return Reply(['{"greeting": "hello"}'])
    if has_tools(body) and not options.ignores_tools:
        tools = cast(list[dict[str, dict[str, object]]], body["tools"])
        return Reply([""], tool_arguments=[_fill(cast(dict[str, object], tools[0]["function"]["parameters"]))])
    texts = [_text_of(body, options, index=index) for index in range(cast(int, body.get("n") or 1))]
    return Reply(texts, probabilities={0: {"one": 0.6, "two": 0.3, "three": 0.1}})


def _text_of(body: Mapping[str, object], options: ServerOptions, *, index: int) -> str:
    text = _PLAIN
    if body.get("temperature"):
        seed = body.get("seed")
        drawn = next(_unseeded) if seed is None or options.ignores_seed else f"{seed}/{index}"
        text = hashlib.sha256(str(drawn).encode()).hexdigest()
    for stop in cast(list[str], body.get("stop") or []):
        text = text if options.ignores_stop else text.partition(stop)[0]
    return text


def _fill(schema: Mapping[str, object]) -> str:
    """Return an object that the schema allows, as JSON: each property's first value."""
    properties = cast(dict[str, dict[str, list[str]]], schema["properties"])
    return json.dumps({name: one["enum"][0] for name, one in properties.items()})


def tokenize(path: str, body: Mapping[str, object], *, options: ServerOptions) -> web.Response:
    """Return the answer of a route that counts, in the options' dialect: a token per word, two more per message."""
    if options.tokenizes == "llama.cpp":
        turns = [f"<{one.get('role')}> {text_of(one.get('content'))} </s>" for one in messages_of(body) or []]
        if path == "/apply-template":
            return json_response({"prompt": " ".join(turns)})
        return json_response({"tokens": list(range(len(str(body.get("content", "")).split())))})
    if options.tokenizes is None or path != "/tokenize":
        return not_found()
    count = len(str(body.get("prompt", "")).split())
    count += sum(len(text_of(one.get("content")).split()) + 2 for one in messages_of(body) or [])
    return json_response({"count": count, "max_model_len": options.max_model_len, "tokens": list(range(count))})


def describe_models(options: ServerOptions) -> web.Response:
    """Return the list of models, as the options' server writes it."""
    names = ("fake-model",) if options.models is None else options.models
    owner = {"vllm": "vllm", "llama.cpp": "llamacpp", "": "tests"}[options.server]
    limit = {"max_model_len": options.max_model_len} if options.server != "llama.cpp" else {}
    models = [{"id": name, "object": "model", "created": CREATED, "owned_by": owner, **limit} for name in names]
    return json_response({"object": "list", "data": models})


def describe_server(path: str, options: ServerOptions) -> web.Response:
    """Return what the options' server says of itself on a route beside OpenAI's."""
    if path == "/version" and options.server == "vllm":
        return json_response({"version": "0.32.0"})
    if path == "/props" and options.server == "llama.cpp":
        settings = {"n_ctx": options.max_model_len}
        return json_response({"default_generation_settings": settings, "build_info": "b7000-fake"})
    return not_found()


def not_found() -> web.Response:
    """Return the answer of a server that does not have the route."""
    return web.Response(status=404, text='{"detail":"Not Found"}', content_type="application/json")
