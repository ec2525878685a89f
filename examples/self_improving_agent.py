"""A served agent that learns from yesterday's failures, without a restart.

::

    serve       POST /chat      {"question": "..."}                           answers, with an id
                POST /feedback  {"id": "...", "good": false, "comment": ""}   is kept, with the time
                GET  /prompt                                                  tells the prompt in use, and its version
    optimize    optimises the agent's prompt on the questions of a day, yesterday's by default, that were rated bad, and
                swaps it if it is better on these and those rated good: a nightly job in a process of its own. The
                server uses the new prompt from its next request on.
    demo        plays a day: questions, ratings, the job, a question again

Run ``python examples/self_improving_agent.py demo --model local:smollm2``: a minute or two, no key, no GPU. So small a
model shows that everything works together, and seldom finds a better prompt. The server listens on this machine alone
and asks nobody who they are: put a server of yours with a login before it.
"""

import argparse
import asyncio
import datetime
import json
import sqlite3
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field, ValidationError

from drpo_graph import DRPOError, Query, RunOptions, Settings, build_settings, optimize
from drpo_graph.agents import AlignmentMiddleware, PromptSlot, swap_if_better
from drpo_graph.aligned import AlignedModel
from drpo_graph.private_files import create_private_file, make_private_folder
from drpo_graph.records import ROLES

INITIAL_PROMPT = "You are a helpful assistant."
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
        with self._open() as database:
            database.execute(f"CREATE TABLE IF NOT EXISTS requests ({columns})")
            database.execute("CREATE TABLE IF NOT EXISTS ratings (id TEXT, time TEXT, good INTEGER, comment TEXT)")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path)) as database, database:
            yield database

    def note(self, question: str, answer: str, *, prompt_version: int) -> str:
        """Keep a request, and return its id."""
        request_id = uuid.uuid4().hex
        row = (request_id, _now(), question, answer, prompt_version)
        with self._open() as database:
            database.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", row)
        return request_id

    def rate(self, given: Feedback) -> bool:
        """Keep a rating; false when there is no such request."""
        with self._open() as database:
            is_known = database.execute("SELECT 1 FROM requests WHERE id = ?", (given.id,)).fetchone() is not None
            if is_known:
                row = (given.id, _now(), given.good, given.comment)
                database.execute("INSERT INTO ratings VALUES (?, ?, ?, ?)", row)
        return is_known

    def rated(self, day: datetime.date, *, good: bool) -> list[Query]:
        """Return the questions of a day whose last rating is this one, each once."""
        with self._open() as database:
            # With max(), SQLite takes the other columns from the row that has it.
            rows = database.execute(
                "SELECT question, good, max(ratings.rowid) FROM requests JOIN ratings USING (id) "
                "WHERE requests.time LIKE ? GROUP BY question",
                (f"{day.isoformat()}%",),
            ).fetchall()
        kind = "good" if good else "bad"
        return [Query(id=f"{kind}-{place}", text=row[0]) for place, row in enumerate(rows) if row[1] == good]


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


async def improve(settings: Settings, slot: PromptSlot, journal: Journal, *, day: datetime.date, folder: Path) -> str:
    """Optimise the prompt on a day's failures, swap it if it is better, and return what happened."""
    bad, good = journal.rated(day, good=False), journal.rated(day, good=True)
    if not bad:
        return f"No request of {day} was rated bad: there is nothing to learn."
    # Every level asks the same queries, so that the new prompt and the one in use compare.
    values = {"initial_prompt": slot.current.text, "queries_per_level": len(bad), "pool_size": len(bad)}
    result = await optimize(
        bad,
        settings=settings.model_copy(update=values),
        # What went well must not get worse, so both kinds decide.
        validation=[*bad, *good] if good else (),
        options=RunOptions(checkpoint=folder / "runs.sqlite"),
    )
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
        body = self.rfile.read(min(int(self.headers["Content-Length"] or 0), MAX_BODY_BYTES))
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
        print(asyncio.run(improve(settings, slot, journal, day=datetime.date.today(), folder=folder)))
        told = send("/chat", question=DAY[0][0])
        print(f"[version {told['prompt_version']}] {DAY[0][0]}\n  {told['answer']}\nin use: {send('/prompt')['text']}")
    finally:
        server.shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, optimise or play from the command line; 0 when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["serve", "optimize", "demo"])
    parser.add_argument("--model", required=True, help="provider:model, e.g. openai:gpt-4o-mini or local:smollm2")
    parser.add_argument("--base-url", help="OpenAI-compatible API, ends in /v1")
    parser.add_argument(
        "--folder", type=Path, default=Path("drpo_runs/agent"), help="where prompt and journal are kept"
    )
    parser.add_argument("--port", type=int, default=8010)
    parser.add_argument(
        "--day", type=datetime.date.fromisoformat, help="whose failures to learn from (default: yesterday)"
    )
    parser.add_argument("--depth", type=int, default=4, help="levels + 1 (default: 4)")
    parser.add_argument("--max-calls", type=int, default=300, help="what the job may spend (default: 300)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest reply of the agent (default: 512)")
    args = parser.parse_args(arguments)
    place = {"model": args.model, "base_url": args.base_url}
    roles: dict[str, object] = {role: {**place, "max_tokens": max(512, args.max_tokens)} for role in ROLES}
    roles["base"] = {**place, "max_tokens": args.max_tokens}
    try:
        settings = build_settings({"depth": args.depth, "beam_size": 1, "max_calls": args.max_calls, **roles})
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
