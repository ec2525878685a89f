"""What a fake model says, when, and how it goes wrong: replies, latency and faults, in OpenAI's JSON."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Literal, cast, get_args

from aiohttp import web

from drpo_graph.records import MAX_SCORE

FaultKind = Literal[
    "429",
    "429_retry_after",
    "500",
    "503",
    "reset",
    "hang",
    "empty",
    "truncated",
    "prose",
    "fenced",
    "refusal",
    "wrong_names",
    "out_of_range",
    "words",
    "repeated",
]
"""``reset`` drops the connection, ``hang`` never answers; from ``empty`` on the reply comes, with a bad text: other
names than were asked for, scores beyond 5 or in words, one sample several times."""

FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
REFUSAL = "I'm sorry, but I can't help with that."
_NORMAL = NormalDist()
CREATED = 1_700_000_000
SPOILING_KINDS = FAULT_KINDS[FAULT_KINDS.index("empty") :]
_WORDS = ("none", "one", "two", "three", "four", "five")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says to one request, or the HTTP error that it gives."""

    texts: list[str] = field(default_factory=list)
    """One per choice; used again from the start where the request wants more, cut where it wants fewer."""
    finish_reasons: list[str] | None = None
    refusals: list[str | None] | None = None
    tool_arguments: list[str] | None = None
    """JSON per choice: a request with tools gets them as a call of the function that it names (the first it offers
    if it names none), any other request gets ``texts``."""
    probabilities: Mapping[int, Mapping[str, float]] | None = None
    """For requests with ``logprobs``: what each token could have been and how probably, by its offset in the text; the
    other tokens are certain. ``None``: the server tells none, as with a call of a tool."""
    status: int = 200
    """Anything but 200 is an error in OpenAI's format."""
    error_message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


Responder = Callable[[dict[str, object]], Reply]
"""From the request body to the reply; for /v1/completions it is asked once per prompt, ``prompt`` being that text."""


def request_key(body: Mapping[str, object]) -> str:
    """Return the SHA-256 of the body as canonical JSON."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a reply takes: lognormal around the median, drawn by request content."""

    median_s: float = 0.0
    sigma: float = 0.0
    """Standard deviation of the logarithm; 0 makes every reply take ``median_s``."""
    seed: int = 0

    def seconds_for(self, key: str) -> float:
        """Return the latency of the request with this key."""
        if not self.sigma:
            return self.median_s
        z = _NORMAL.inv_cdf(_uniforms("latency", self.seed, key)[0])
        return self.median_s * math.exp(self.sigma * z)


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which arrival of which request goes wrong, and how."""

    rate: float
    kinds: Sequence[FaultKind] = FAULT_KINDS
    seed: int = 0
    max_per_request: int = 2
    """After so many faults the same request body is answered properly."""
    retry_after_s: float = 1.0
    """What ``429_retry_after`` asks for."""
    spares_text: bool = False
    """Whether a reply that need not be JSON is left as it is, or empty: any other text is a good reply too."""

    def fault_for(self, key: str, arrival: int) -> FaultKind | None:
        """Return the fault of the arrival (counted from 0) of the request with this key."""
        num_faults = 0
        for index in range(arrival + 1):
            chance, choice = _uniforms("fault", self.seed, key, index)
            is_faulty = chance < self.rate and num_faults < self.max_per_request
            num_faults += is_faulty
        return self.kinds[int(choice * len(self.kinds))] if is_faulty else None


def build_echo_responder(prefix: str = "echo: ") -> Responder:
    """Return a responder that repeats the last message or the prompt, numbered by choice."""

    def echo(body: dict[str, object]) -> Reply:
        messages = messages_of(body)
        text = text_of(messages[-1].get("content")) if messages else str(body.get("prompt"))
        return Reply([f"{prefix}{text} #{index}" for index in range(cast(int, body.get("n") or 1))])

    return echo


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of a reply."""

    text: str | None = None
    finish_reason: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    probabilities: Mapping[int, Mapping[str, float]] | None = None


def choices_of(reply: Reply, n: int, *, has_tools: bool) -> list[Choice]:
    """Return ``n`` choices of the reply."""

    def at(values: Sequence[str | None] | None, index: int) -> str | None:
        return values[index % len(values)] if values else None

    arguments = reply.tool_arguments if has_tools else None
    return [
        Choice(
            at(reply.texts, i),
            at(reply.finish_reasons, i),
            at(reply.refusals, i),
            at(arguments, i),
            None if arguments else reply.probabilities,
        )
        for i in range(n)
    ]


def spoiled(choice: Choice, fault: FaultKind | None) -> Choice:
    """Return the choice with its fault; prose and fences stand in the text even where a tool call was due."""
    content = choice.text or "" if choice.arguments is None else choice.arguments
    match fault:
        case "empty":
            return Choice(text="")
        case "truncated":
            half = content[: len(content) // 2]
            is_call = choice.arguments is not None
            return Choice(choice.text if is_call else half, "length", arguments=half if is_call else None)
        case "prose":
            return Choice(f"Sure! Here is what you asked for:\n\n{content}\n\nLet me know if you need anything else.")
        case "fenced":
            return Choice(f"```json\n{content}\n```")
        case "refusal":
            return Choice(refusal=REFUSAL)
        case "wrong_names" | "out_of_range" | "words":
            arguments = None if choice.arguments is None else _misstated(choice.arguments, fault)
            return replace(choice, text=_misstated(choice.text or "", fault), arguments=arguments)
        case _:
            return choice


def _misstated(content: str, fault: FaultKind) -> str:
    """Return a JSON object's text with other names, or other scores; any other text as it is."""
    value = parse_object(content.encode())
    if value is None:
        return content
    if fault == "wrong_names":
        return json.dumps({f"Unasked {place}": entry for place, entry in enumerate(value.values())})
    for entry in value.values():
        if isinstance(entry, dict) and isinstance(entry.get("score"), int):
            entry["score"] = entry["score"] + MAX_SCORE if fault == "out_of_range" else _WORDS[entry["score"]]
    return json.dumps(value)


def chat_completion(body: dict[str, object], choices: list[Choice], *, key: str) -> dict[str, object]:
    """Return the answer of /v1/chat/completions."""
    prompt = [text_of(message.get("content")) for message in messages_of(body) or []]
    payload = _frame(body, choices, key=key, prompt=prompt, kind="chat.completion")
    payload["choices"] = [_chat_choice(body, choice, key=key, index=index) for index, choice in enumerate(choices)]
    return payload


def _chat_choice(body: dict[str, object], choice: Choice, *, key: str, index: int) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": choice.text, "refusal": choice.refusal}
    finish_reason = choice.finish_reason or "stop"
    if choice.arguments is not None:
        name, is_forced = _called_function(body)
        call_id = f"call_{key[:16]}_{index}"
        function = {"name": name, "arguments": choice.arguments}
        message["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
        # OpenAI ends a call that the request forced with "stop".
        finish_reason = choice.finish_reason or ("stop" if is_forced else "tool_calls")
    logprobs: dict[str, object] | None = None
    if body.get("logprobs") and choice.probabilities is not None:
        logprobs = {"content": [_chat_token(*one, asked_logprobs(body)) for one in _tokens_of(choice)], "refusal": None}
    return {"index": index, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}


def asked_logprobs(body: Mapping[str, object]) -> int:
    """Return how many alternatives per token a request asks for."""
    return cast(int, body.get("top_logprobs") if "messages" in body else body.get("logprobs")) or 0


_TOKEN = re.compile(r"[^\x00-\x7f]|\d| ?[A-Za-z]+|.", re.DOTALL)


def _tokens_of(choice: Choice) -> list[tuple[bytes, dict[bytes, float]]]:
    """Return the tokens of a choice's text with the log probabilities of what each could have been, best first.

    Words and digits are tokens; a character that is not ASCII is one token per byte, as it is for many models.
    """
    tokens: list[tuple[bytes, dict[bytes, float]]] = []
    for match in _TOKEN.finditer(choice.text or ""):
        given = (choice.probabilities or {}).get(match.start(), {match[0]: 1.0})
        told = {one.encode(): math.log(share) if share else -9999.0 for one, share in given.items()}
        best_first = dict(sorted(told.items(), key=lambda item: -item[1]))
        if match[0].isascii():
            tokens.append((match[0].encode(), best_first))
        else:
            tokens += [(bytes([byte]), {bytes([byte]): 0.0}) for byte in match[0].encode()]
    return tokens


def _chat_token(text: bytes, alternatives: Mapping[bytes, float], top: int) -> dict[str, object]:
    entries = [
        {"token": one.decode("utf-8", "replace"), "bytes": list(one), "logprob": logprob}
        for one, logprob in [(text, alternatives.get(text, -9999.0)), *list(alternatives.items())[:top]]
    ]
    return {**entries[0], "top_logprobs": entries[1:]}


def _completion_logprobs(body: Mapping[str, object], choice: Choice) -> dict[str, object] | None:
    if choice.probabilities is None or not asked_logprobs(body):
        return None
    tokens = _tokens_of(choice)
    return {
        "tokens": [text.decode("utf-8", "replace") for text, _ in tokens],
        "token_logprobs": [alternatives.get(text, -9999.0) for text, alternatives in tokens],
        "top_logprobs": [
            {one.decode("utf-8", "replace"): told[one] for one in list(told)[: asked_logprobs(body)]}
            for _, told in tokens
        ],
    }


def completion(body: dict[str, object], choices: list[Choice], *, key: str) -> dict[str, object]:
    """Return the answer of /v1/completions."""
    payload = _frame(body, choices, key=key, prompt=prompts_of(body) or [], kind="text_completion")
    payload["choices"] = [
        {
            "index": index,
            "text": choice.refusal or choice.text or "",
            "finish_reason": choice.finish_reason or "stop",
            "logprobs": _completion_logprobs(body, choice),
        }
        for index, choice in enumerate(choices)
    ]
    return payload


def _frame(
    body: dict[str, object], choices: list[Choice], *, key: str, prompt: list[str], kind: str
) -> dict[str, object]:
    num_prompt = sum(len(text.split()) for text in prompt)
    said = [text for choice in choices for text in (choice.text, choice.refusal, choice.arguments) if text]
    num_completion = sum(len(text.split()) for text in said)
    usage = {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    return {"id": f"cmpl-{key[:24]}", "object": kind, "created": CREATED, "model": body["model"], "usage": usage}


def parse_object(raw: bytes) -> dict[str, object] | None:
    """Return the JSON object, ``None`` where it is none."""
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def messages_of(body: Mapping[str, object]) -> list[dict[str, object]] | None:
    """Return the request's messages, ``None`` where it has none or something else."""
    messages = body.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        return messages
    return None


def prompts_of(body: Mapping[str, object]) -> list[str] | None:
    """Return the request's prompts, ``None`` where it has none or something else than text."""
    prompt = body.get("prompt")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    texts = [each for each in prompts if isinstance(each, str)]
    return texts if texts and len(texts) == len(prompts) else None


def text_of(content: object) -> str:
    """Return a message's text, whether it came as a string or in parts."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def asks_for_json(body: Mapping[str, object]) -> bool:
    """Return whether the request wants a JSON object."""
    return bool(body.get("response_format")) or has_tools(body)


def has_tools(body: Mapping[str, object]) -> bool:
    """Return whether the request lets the model call a tool."""
    return bool(body.get("tools")) and body.get("tool_choice") != "none"


def _called_function(body: dict[str, object]) -> tuple[str, bool]:
    """Return the name of the function to call and whether the request forced it."""
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        return str(choice["function"]["name"]), True
    tools = cast(list[dict[str, dict[str, str]]], body["tools"])
    return tools[0]["function"]["name"], False


def json_response(payload: Mapping[str, object]) -> web.Response:
    """Return the answer with this body."""
    return web.Response(body=json.dumps(payload).encode(), content_type="application/json")


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return an HTTP error in OpenAI's format."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    body = json.dumps({"error": error}).encode()
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def _uniforms(*parts: str | int) -> tuple[float, float]:
    """Return two numbers between 0 and 1, both excluded, that only the parts decide."""
    bits = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return (int.from_bytes(bits[:6]) + 0.5) / 2**48, (int.from_bytes(bits[6:12]) + 0.5) / 2**48
