"""A small OpenAI-compatible server on 127.0.0.1: it says what a ``Responder`` says, late or wrong on request.

In-process: ``async with FakeServer(responder, ServerOptions(...)) as server: server.base_url``. As its own process:
``spawn_fake_server("module:factory", config={...}, options=ServerOptions(...))`` or, by hand,
``python -m tests.support.fake_server --responder module:factory --latency 0.2 --log FILE --port-file FILE``.

Latency and faults depend on the content of a request and on how often that content came, never on the order in which
different requests arrive. A check that refuses a request (key, model, unsupported parameter) comes before any fault.
A fault concerns all choices of a reply. Usage counts words.
"""

import argparse
import asyncio
import importlib
import json
import os
import signal
import socket
import struct
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal, NotRequired, Self, TypedDict, cast

from aiohttp import web

from tests.support.embeddings import EmbeddingsServer
from tests.support.fake_errors import in_form
from tests.support.fake_options import ServerOptions as ServerOptions
from tests.support.fake_probes import (
    NO_TEMPLATE,
    describe_models,
    describe_server,
    is_probe,
    not_found,
    objection_to_probe,
    probe_reply,
    tokenize,
)
from tests.support.fake_process import SpawnedServer as SpawnedServer
from tests.support.fake_process import spawn_fake_server as spawn_fake_server
from tests.support.fake_replies import FAULT_KINDS as FAULT_KINDS
from tests.support.fake_replies import REFUSAL as REFUSAL
from tests.support.fake_replies import (
    SPOILING_KINDS,
    Choice,
    asked_logprobs,
    asks_for_json,
    chat_completion,
    choices_of,
    completion,
    error_response,
    has_tools,
    json_response,
    messages_of,
    parse_object,
    prompts_of,
    spoiled,
)
from tests.support.fake_replies import FaultKind as FaultKind
from tests.support.fake_replies import FaultPlan as FaultPlan
from tests.support.fake_replies import Latency as Latency
from tests.support.fake_replies import Reply as Reply
from tests.support.fake_replies import Responder as Responder
from tests.support.fake_replies import build_echo_responder as build_echo_responder
from tests.support.fake_replies import request_key as request_key
from tests.support.fake_streams import stream_response
from tests.support.fake_terms import refuse_fields, think

_CHAT_PATH = "/v1/chat/completions"
STATUS_RESET, STATUS_CLIENT_GONE = 0, 499


class LogEntry(TypedDict):
    """One line of the log: a request came (``start``), or its reply is about to be sent (``end``)."""

    event: Literal["start", "end"]
    seq: int
    """Counts requests by arrival, from 0; the same in both entries."""
    key: str
    """SHA-256 of the body as canonical JSON."""
    model: str
    path: str
    fault: FaultKind | None
    in_flight: int
    """Requests under way, this one included."""
    t_start: float
    t_end: NotRequired[float]
    status: NotRequired[int]
    """HTTP status; 0 for a reset, 499 when the client went away first."""
    body: NotRequired[dict[str, object]]


class FakeServer:
    """The server; an asynchronous context manager."""

    def __init__(self, responder: Responder, options: ServerOptions | None = None) -> None:
        self.responder = responder
        self.options = options or ServerOptions()
        self.log: list[LogEntry] = []
        """Both entries of every POST request, in the order they happened."""
        self.probes: list[dict[str, object]] = []
        """The bodies of capability probes, which are in no log and meet no fault and no latency."""
        self.gets: list[str] = []
        """The paths of GET requests."""
        self.max_in_flight = 0
        self._in_flight = 0
        self._num_requests = 0
        self._arrivals: Counter[str] = Counter()
        self._file: IO[str] | None = None
        self._closing = asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post(_CHAT_PATH, self._handle)
        app.router.add_post("/v1/completions", self._handle)
        app.router.add_post("/v1/embeddings", EmbeddingsServer().handle)
        app.router.add_get("/v1/models", self._describe)
        app.router.add_get("/version", self._describe)
        app.router.add_get("/props", self._describe)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/apply-template", self._tokenize)
        # With handler_cancellation, a client that gives up frees its request at once.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05)

    async def __aenter__(self) -> Self:
        if self.options.log_path:
            self._file = open(self.options.log_path, "a", encoding="utf-8")  # noqa: SIM115
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.options.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        await self._runner.cleanup()
        if self._file:
            self._file.close()

    @property
    def base_url(self) -> str:
        """What ``OPENAI_BASE_URL`` should be, ``/v1`` included."""
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    @property
    def finished(self) -> list[LogEntry]:
        """The log's ``end`` entries."""
        return [entry for entry in self.log if entry["event"] == "end"]

    async def _handle(self, request: web.Request) -> web.Response:
        return in_form(await self._respond(request), self.options.error_form)

    async def _respond(self, request: web.Request) -> web.Response:
        body = parse_object(await request.read())
        if body is None:
            return error_response(400, "We could not parse the JSON body of your request.")
        objection = self._objection_to(request, body)
        if is_probe(body):
            self.probes.append(body)
            return objection or objection_to_probe(body, self.options) or self._answer(request, body, key="probe")
        entry = self._log_start(request.path, body, is_faultless=objection is not None)
        fault, status = entry["fault"], STATUS_CLIENT_GONE
        try:
            if objection is None:
                await self._delay(fault, entry["key"])
            status = 500  # What aiohttp answers should the responder raise.
            response = objection or self._reply_to(request, body, entry=entry)
            status = STATUS_RESET if fault == "reset" else response.status
            return response
        finally:
            self._log_end(entry, status)

    def _objection_to(self, request: web.Request, body: dict[str, object]) -> web.Response | None:
        """Return the error for a request that this server does not serve."""
        options, is_chat = self.options, request.path == _CHAT_PATH
        if request.path in options.missing_routes:
            return not_found()
        if not self._is_authorized(request):
            return error_response(401, "Incorrect API key provided.", code="invalid_api_key")
        model = body.get("model")
        if not isinstance(model, str):
            return error_response(400, "You must provide a model parameter.", param="model")
        if options.models is not None and model not in options.models:
            message = f"The model `{model}` does not exist or you do not have access to it."
            return error_response(404, message, code="model_not_found")
        n = body.get("n")
        if n is not None and not (isinstance(n, int) and 1 <= n <= 128):
            return error_response(400, f"n must be an integer from 1 to 128, got {n!r}.", param="n")
        if (messages_of(body) if is_chat else prompts_of(body)) is None:
            param = "messages" if is_chat else "prompt"
            return error_response(400, f"Missing or unsupported parameter: '{param}'.", param=param)
        return self._limit_objection(body)

    def _limit_objection(self, body: dict[str, object]) -> web.Response | None:
        """Return the error for something that a fuller server would do."""
        options = self.options
        rejected = {
            "response_format": options.reject_response_format,
            "tools": options.reject_tools,
            "logprobs": options.reject_logprobs,
        }
        for param in rejected:
            if rejected[param] and body.get(param):
                message = f"Unsupported parameter: '{param}' is not supported with this model."
                return error_response(400, message, code="unsupported_parameter", param=param)
        if options.reject_chat and messages_of(body):
            return error_response(400, NO_TEMPLATE)
        if messages_of(body) is not None and (refusal := refuse_fields(body, options)) is not None:
            return refusal
        roles = {message.get("role") for message in messages_of(body) or []}
        if options.reject_system_role and roles & {"system", "developer"}:
            return error_response(400, options.system_role_words)
        asked, limit = asked_logprobs(body), options.max_top_logprobs
        if limit is not None and asked > limit:
            return error_response(400, f"Requested logprobs of {asked}, which is greater than max allowed: {limit}")
        return None

    def _is_authorized(self, request: web.Request) -> bool:
        key = self.options.api_key
        return key is None or request.headers.get("Authorization") == f"Bearer {key}"

    async def _delay(self, fault: FaultKind | None, key: str) -> None:
        """Wait as long as this reply takes; errors come at once."""
        if fault == "hang":
            await self._closing.wait()
        elif fault is None or fault in SPOILING_KINDS:
            await asyncio.sleep(self.options.latency.seconds_for(key))

    def _reply_to(self, request: web.Request, body: dict[str, object], *, entry: LogEntry) -> web.Response:
        fault, key = entry["fault"], entry["key"]
        if fault == "reset":
            _reset(request)
            return web.Response()
        if fault is not None and fault not in SPOILING_KINDS:
            return self._fault_response(fault)
        return self._answer(request, body, key=key, fault=fault)

    def _answer(
        self, request: web.Request, body: dict[str, object], *, key: str, fault: FaultKind | None = None
    ) -> web.Response:
        n = 1 if self.options.ignore_n else cast(int, body.get("n") or 1)
        prompts = None if request.path == _CHAT_PATH else prompts_of(body)
        asked = [body] if prompts is None else [{**body, "prompt": prompt} for prompt in prompts]
        choices: list[Choice] = []
        for each in asked:
            reply = probe_reply(each, self.options) if is_probe(body) else self.responder(each)
            if reply.status != 200:
                return error_response(reply.status, reply.error_message, headers=reply.headers)
            good = choices_of(reply, n, has_tools=has_tools(body))
            choices += [spoiled(choice, fault) for choice in (good[:1] * n if fault == "repeated" else good)]
        complete = chat_completion if prompts is None else completion
        payload = think(complete(self._as_read(body), choices, key=key), body, options=self.options)
        payload = self._as_reported(payload)
        return stream_response(payload) if body.get("stream") else json_response(payload)

    def _as_read(self, body: dict[str, object]) -> dict[str, object]:
        """Return the request without what the server overlooks."""
        read = {name: value for name, value in body.items() if name != "logprobs" or not self.options.no_logprobs}
        messages = messages_of(body)
        if self.options.drops_system and messages:
            read["messages"] = [one for one in messages if one.get("role") != "system"]
        return read

    def _as_reported(self, payload: dict[str, object]) -> dict[str, object]:
        if not self.options.reports_cached_tokens:
            cast(dict[str, object], payload["usage"]).pop("prompt_tokens_details")
        if not self.options.reports_usage:
            payload.pop("usage")
        return payload

    def _fault_response(self, fault: FaultKind) -> web.Response:
        if fault in ("429", "429_retry_after"):
            assert self.options.faults
            wait_s = f"{self.options.faults.retry_after_s:g}"
            headers = {"Retry-After": wait_s} if fault == "429_retry_after" else None
            return error_response(429, "Rate limit reached.", code="rate_limit_exceeded", headers=headers)
        if fault == "500":
            return error_response(500, "The server had an error while processing your request.")
        return error_response(503, "The engine is currently overloaded, please try again later.")

    async def _describe(self, request: web.Request) -> web.Response:
        self.gets.append(request.path)
        if not self._is_authorized(request):
            return error_response(401, "Incorrect API key provided.", code="invalid_api_key")
        if request.path in self.options.missing_routes:
            return not_found()
        is_models = request.path == "/v1/models"
        return describe_models(self.options) if is_models else describe_server(request.path, self.options)

    async def _tokenize(self, request: web.Request) -> web.Response:
        return tokenize(request.path, parse_object(await request.read()) or {}, options=self.options)

    def _log_start(self, path: str, body: dict[str, object], *, is_faultless: bool) -> LogEntry:
        key = request_key(body)
        fault = None
        if self.options.faults and not is_faultless:
            fault = self.options.faults.fault_for(key, self._arrivals[key])
            is_spared = self.options.faults.spares_text and not asks_for_json(body)
            if is_spared and fault in SPOILING_KINDS and fault != "empty":
                fault = None
            self._arrivals[key] += 1
        self._in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self._in_flight)
        entry = LogEntry(
            event="start",
            seq=self._num_requests,
            key=key,
            model=str(body.get("model")),
            path=path,
            fault=fault,
            in_flight=self._in_flight,
            t_start=time.time(),
        )
        if self.options.log_bodies:
            entry["body"] = body
        self._num_requests += 1
        self._write(entry)
        return entry

    def _log_end(self, start: LogEntry, status: int) -> None:
        entry = LogEntry(**start)
        entry.update({"event": "end", "in_flight": self._in_flight, "t_end": time.time(), "status": status})
        self._in_flight -= 1
        self._write(entry)

    def _write(self, entry: LogEntry) -> None:
        self.log.append(entry)
        if self._file:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()


def read_log(path: str | Path) -> list[LogEntry]:
    """Return the entries of a log file; a last line that a kill cut short is left out."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1]
    return [cast(LogEntry, json.loads(line)) for line in lines]


def _reset(request: web.Request) -> None:
    """Drop the connection with a TCP reset."""
    if request.transport is None:
        return
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


async def _serve(responder: Responder, options: ServerOptions, *, port_file: Path) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with FakeServer(responder, options) as server:
        unfinished = port_file.with_name(port_file.name + ".new")
        unfinished.write_text(server.base_url)
        os.replace(unfinished, port_file)
        await stopped.wait()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.fake_server", description=main.__doc__)
    parser.add_argument("--responder", default="tests.support.fake_server:build_echo_responder", help="module:factory")
    parser.add_argument("--responder-config", type=json.loads, default={}, help="keyword arguments as JSON")
    parser.add_argument(
        "--options", type=ServerOptions.from_json, default=ServerOptions(), help="fields of ServerOptions as JSON"
    )
    parser.add_argument("--latency", type=float, help="seconds that each reply takes")
    parser.add_argument("--log", help="JSONL file to append to")
    parser.add_argument("--port-file", type=Path, required=True, help="where to write the base URL")
    args = parser.parse_args()
    options: ServerOptions = args.options
    if args.latency is not None:
        options = replace(options, latency=Latency(args.latency))
    if args.log is not None:
        options = replace(options, log_path=args.log)
    module, _, factory = args.responder.partition(":")
    responder: Responder = getattr(importlib.import_module(module), factory)(**args.responder_config)
    asyncio.run(_serve(responder, options, port_file=args.port_file))


if __name__ == "__main__":
    main()
