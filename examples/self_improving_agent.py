"""A served agent that learns from yesterday's failures, without a restart.

::

    serve       POST /chat      {"question": "..."}                           answers, with an id
                POST /feedback  {"id": "...", "good": false, "comment": ""}   is kept, with the time
                GET  /prompt                                                  tells the prompt in use, and its version
    optimize    optimises the agent's prompt on the questions of a day, yesterday's by default, that were rated bad,
                with each user's comment as a metric, and swaps it if it is better on those held out and those rated
                good: a nightly job in a process of its own. The server uses the new prompt from its next request on.
    demo        plays a day: questions, ratings, the job, a question again

Run ``python examples/self_improving_agent.py demo --model local:smollm2 --config examples/demo.toml``: some minutes, no
key, no GPU. So small a model shows that everything works together, and seldom finds a better prompt. The server listens
on this machine alone and asks nobody who they are: put one of yours with a login before it.
"""

import argparse
import asyncio
import datetime
import json
import sqlite3
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field, ValidationError

from drpo_graph import (
    DRPOError,
    Metric,
    MetricSelection,
    Models,
    Parts,
    Query,
    RunOptions,
    Settings,
    build_settings,
    optimize,
)
from drpo_graph.agents import AlignmentMiddleware, PromptSlot, swap_if_better
from drpo_graph.errors import BudgetSpentError
from drpo_graph.inference import AlignedModel
from drpo_graph.parts.defaults import LLMMetricSelector
from drpo_graph.prompts import load_prompts
from drpo_graph.records import ROLES
from drpo_graph.safety.private_files import create_private_file, make_private_folder
from drpo_graph.settings.layers import load_settings_file, merge_settings

INITIAL_PROMPT = "You are a helpful assistant."
BOUNDS: dict[str, object] = {"depth": 4, "beam_size": 1, "max_calls": 300}
"""Of the nightly job, unless the settings say otherwise."""

MAX_BODY_BYTES = 64_000
DAY = (
    ("Explain compound interest to a ten-year-old.", False, "too hard to follow"),
    ("When should I leave for a flight at 6:10?", False, "it did not ask where I live"),
    ("What is a good name for a grey cat?", True, ""),
)
"""What the demo asks, and how it rates the answers."""


class Chat(BaseModel):
    """A question; with a conversation's name it goes on with that."""

    question: str
    conversation: str = Field(default_factory=lambda: uuid.uuid4().hex)


class Feedback(BaseModel):
    """What somebody thinks of an answer."""

    id: str
    good: bool
    comment: str = ""


class Journal:
    """Requests and their ratings, in a SQLite file that its owner alone can read."""

    def __init__(self, path: Path) -> None:
        make_private_folder(path.parent)
        create_private_file(path)
        self._path = path
        columns = "id TEXT PRIMARY KEY, time TEXT, question TEXT, answer TEXT, prompt_version INTEGER"
        self._run(f"CREATE TABLE IF NOT EXISTS requests ({columns}, good INTEGER, comment TEXT, rated_at TEXT)")

    def note(self, question: str, answer: str, *, prompt_version: int) -> str:
        """Keep a request, and return its id."""
        row = (uuid.uuid4().hex, _now(), question, answer, prompt_version)
        self._run("INSERT INTO requests VALUES (?, ?, ?, ?, ?, NULL, NULL, NULL)", *row)
        return row[0]

    def rate(self, given: Feedback) -> bool:
        """Keep a rating; false when there is no such request."""
        row = (given.good, given.comment, _now(), given.id)
        return bool(self._run("UPDATE requests SET good=?, comment=?, rated_at=? WHERE id=? RETURNING id", *row))

    def rated(self, day: datetime.date, *, good: bool) -> list[Query]:
        """Return a day's questions that were rated so; their tags are what was said of the answer."""
        where = "good = ? AND time LIKE ? GROUP BY question ORDER BY min(time)"
        chosen = "min(id), question, max(comment)"
        rows = self._run(f"SELECT {chosen} FROM requests WHERE {where}", good, f"{day.isoformat()}%")
        return [Query(id=one, text=question, tags=(said,) if said else ()) for one, question, said in rows]

    def _run(self, statement: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self._path)) as database, database:
            return database.execute(statement, values).fetchall()


def _now() -> str:
    return datetime.datetime.now().isoformat(timespec="milliseconds")


class Assistant:
    """The agent with the prompt of its slot; the prompt is read anew at each request."""

    def __init__(self, settings: Settings, slot: PromptSlot, journal: Journal) -> None:
        self.slot, self.journal = slot, journal
        model = AlignedModel(model=settings.base.model, settings=settings.model_copy(update={"max_outage_s": 0}))
        middleware: Any = AlignmentMiddleware(slot)
        self._agent = create_agent(model, middleware=[middleware], checkpointer=InMemorySaver())

    def chat(self, given: Chat) -> dict[str, object]:
        """Return the agent's answer."""
        version = self.slot.current.version
        config: Any = {"configurable": {"thread_id": given.conversation}}
        state = self._agent.invoke({"messages": [("user", given.question)]}, config)
        answer = state["messages"][-1].text
        request_id = self.journal.note(given.question, answer, prompt_version=version)
        return {"id": request_id, "answer": answer, "prompt_version": version, "conversation": given.conversation}


class WithComplaints:
    """Has answers judged on what the user complained of, beside the metrics that the model selects."""

    def __init__(self, settings: Settings) -> None:
        self._others = LLMMetricSelector(load_prompts(settings.templates), settings)

    async def select_metrics(self, query: Query, *, models: Models) -> MetricSelection:
        """Return the query's metrics."""
        selected = await self._others.select_metrics(query, models=models)
        complaints = [
            Metric(name="Complaint", definition=f"This answer has not the fault of a former one: {one}")
            for one in query.tags
        ]
        return selected.model_copy(update={"metrics": (*selected.metrics, *complaints)})


async def improve(settings: Settings, slot: PromptSlot, journal: Journal, *, day: datetime.date, folder: Path) -> str:
    """Optimise the prompt on a day's failures, swap it if it is better, and return what happened."""
    bad, good = journal.rated(day, good=False), journal.rated(day, good=True)
    if not bad:
        return f"No request of {day} was rated bad: there is nothing to learn."
    good = [one.model_copy(update={"tags": ()}) for one in good]
    # Half of the failures are held out to choose on, and so is what went well: it must not get worse.
    training, held_out = bad[::2], [*bad[1::2], *good]
    # Every level asks the same queries, so that rewards compare where nothing is held out.
    values = {"initial_prompt": slot.current.text, "queries_per_level": len(training), "pool_size": len(training)}
    result = await optimize(
        training,
        settings=settings.model_copy(update=values),
        validation=held_out,
        options=RunOptions(checkpoint=folder / "runs.sqlite"),
        parts=Parts(selector=WithComplaints(settings)),
    )
    # Of few ratings hardly any gain is significant; with many, leave swap_when out.
    swap = swap_if_better(slot, result, swap_when="better")
    use = f"version {swap.version.version} is in use" if swap.version else "the prompt stays"
    return f"Run {result.thread_id} on {len(bad)} failures of {day}: {use}, {swap.reason}."


class Handler(BaseHTTPRequestHandler):
    """The three addresses."""

    assistant: Assistant

    def do_GET(self) -> None:
        if self.path == "/prompt":
            self._reply(200, self.assistant.slot.current.model_dump())
        else:
            self._reply(404, {"error": "expected /prompt"})

    def do_POST(self) -> None:
        # A page of another site can make a browser post, but not this type.
        if self.headers.get_content_type() != "application/json":
            return self._reply(415, {"error": "expected application/json"})
        length = self.headers["Content-Length"] or ""
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return self._reply(413, {"error": f"expected a body of at most {MAX_BODY_BYTES} bytes, and its length"})
        body = self.rfile.read(int(length))
        try:
            if self.path == "/chat":
                return self._reply(200, self.assistant.chat(Chat.model_validate_json(body)))
            if self.path == "/feedback":
                is_known = self.assistant.journal.rate(Feedback.model_validate_json(body))
                return self._reply(200 if is_known else 404, {"kept": is_known})
        except ValidationError as error:
            return self._reply(400, {"error": str(error)})
        except DRPOError as error:
            return self._reply(502, {"error": str(error)})
        return self._reply(404, {"error": "expected /chat or /feedback"})

    def _reply(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Leave the terminal alone; the journal knows the requests."""


def make_server(assistant: Assistant, port: int) -> ThreadingHTTPServer:
    """Return a server on this machine's own address; port 0 takes a free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"assistant": assistant}))


def play(settings: Settings, slot: PromptSlot, journal: Journal, folder: Path) -> None:
    """Play a day against a running server, and print it."""
    server = make_server(Assistant(settings, slot, journal), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def send(path: str, **body: object) -> Any:
        data, headers = json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", data, headers)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    try:
        for question, good, comment in DAY:
            told = send("/chat", question=question)
            send("/feedback", id=told["id"], good=good, comment=comment)
            print(f"[version {told['prompt_version']}] {question}\n  {told['answer']}\n  good: {good} {comment}")
        try:
            print(asyncio.run(improve(settings, slot, journal, day=datetime.date.today(), folder=folder)))
        except BudgetSpentError as error:
            print(f"the job has ended early: {error}")
        told = send("/chat", question=DAY[0][0])
        print(f"[version {told['prompt_version']}] {DAY[0][0]}\n  {told['answer']}\nin use: {send('/prompt')['text']}")
    finally:
        server.shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, optimise or play from the command line; 0 when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["serve", "optimize", "demo"])
    parser.add_argument("--model", required=True, help="provider:model, e.g. openai:gpt-5-mini or local:smollm2")
    parser.add_argument("--base-url", help="OpenAI-compatible API, ends in /v1")
    parser.add_argument(
        "--folder", type=Path, default=Path("drpo_runs/agent"), help="where prompt and journal are kept"
    )
    parser.add_argument("--port", type=int, default=8010)
    parser.add_argument(
        "--day", type=datetime.date.fromisoformat, help="whose failures to learn from (default: yesterday)"
    )
    parser.add_argument("--config", type=Path, help="settings of the job and its roles, such as examples/demo.toml")
    args = parser.parse_args(arguments)
    place: dict[str, object] = {role: {"model": args.model, "base_url": args.base_url} for role in ROLES}
    try:
        given = load_settings_file(args.config) if args.config else {}
        settings = build_settings(merge_settings(BOUNDS, given, place))
        slot = PromptSlot(args.folder / "prompt.json", initial=INITIAL_PROMPT)
        journal = Journal(args.folder / "journal.sqlite")
        if args.action == "demo":
            play(settings, slot, journal, args.folder)
        elif args.action == "optimize":
            day = args.day or datetime.date.today() - datetime.timedelta(days=1)
            print(asyncio.run(improve(settings, slot, journal, day=day, folder=args.folder)))
        else:
            server = make_server(Assistant(settings, slot, journal), args.port)
            print(f"listening on http://127.0.0.1:{server.server_port}")
            server.serve_forever()
    except KeyboardInterrupt:
        return 130
    except DRPOError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except urllib.error.HTTPError as error:
        print(f"stopped: the server's answer is {error.read().decode()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
