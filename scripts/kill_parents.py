"""Kill graphs around the search that have a checkpointer and nothing else; they go on, and find what they would have.

What stands in the checkpointer after a kill is read, and none of those calls may be asked for again.

    python scripts/kill_parents.py --kills 40
    python scripts/kill_parents.py --kills 40 --checkpoint postgres    # starts a server of its own; extra test-postgres
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from drpo_graph.settings.settings import Settings
from scripts.kill_runs import ASKED, log_calls, read_asked
from tests.conformance.graphs import CASES, RECURSION, found_in, make_settings
from tests.support.fake_server import Latency, ServerOptions, spawn_fake_server

CONFIG: Any = {"configurable": {"thread_id": "t"}, **RECURSION}
PARENTS = [name for name, case in CASES.items() if case.is_parent]
Saver = Callable[[Path], AbstractAsyncContextManager[BaseCheckpointSaver[Any]]]
"""Opens the checkpointer of a folder's run."""


@asynccontextmanager
async def open_sqlite(folder: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """Open a file in the folder."""
    async with AsyncSqliteSaver.from_conn_string(str(folder / "parent.sqlite")) as saver:
        # LangGraph's default waits for the disk at each call.
        await saver.conn.execute("PRAGMA synchronous=NORMAL")
        yield saver


def choose_place(kind: str, stack: ExitStack) -> tuple[Saver, Callable[[], Path]]:
    """Return what opens checkpointers, and what makes a folder for a run; all is gone when the stack is closed."""
    root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if kind == "sqlite":
        return open_sqlite, lambda: Path(tempfile.mkdtemp(dir=root))
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    from tests.support.postgres import run_postgres

    server = stack.enter_context(run_postgres())

    @asynccontextmanager
    async def open_postgres(folder: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
        async with AsyncPostgresSaver.from_conn_string((folder / "uri").read_text()) as saver:
            await saver.setup()
            yield saver

    def make_folder() -> Path:
        folder = Path(tempfile.mkdtemp(dir=root))
        (folder / "uri").write_text(server.make_database())
        return folder

    return open_postgres, make_folder


async def carry_out(name: str, settings: Settings, folder: Path, saver: Saver) -> None:
    """Begin the run, or go on with it."""
    async with saver(folder) as checkpointer:
        graph = CASES[name].build(settings, {"checkpointer": checkpointer})
        has_begun = (await graph.aget_state(CONFIG)).created_at is not None
        output = await graph.ainvoke(None if has_begun else CASES[name].given, CONFIG)
    (folder / "found.json").write_text(json.dumps(found_in(output), sort_keys=True))


async def read_committed(folder: Path, saver: Saver) -> set[str]:
    """Return the keys of the calls that stand in the checkpointer."""
    keys: set[str] = set()
    async with saver(folder) as checkpointer:
        async for one in checkpointer.alist({"configurable": {"thread_id": "t"}}):
            for _, place, _ in one.pending_writes or ():
                if place.startswith('["drpo"'):
                    *_, kind, key = json.loads(place)
                    keys |= {key} if kind == "calls" else set()
    return keys


def run_in_child(name: str, settings: Settings, folder: Path, saver: Saver, delay_s: float | None) -> bool:
    """Run in a forked child, and kill it after a while; return whether it ended by itself."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            log_calls(folder / ASKED)
            asyncio.run(carry_out(name, settings, folder, saver))
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  # The child's only way to tell.
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    ends_at = time.monotonic() + (delay_s if delay_s is not None else 1e9)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() >= ends_at:
            os.kill(child, signal.SIGKILL)
            ends_at = float("inf")
        time.sleep(0.002)
    if (code := os.waitstatus_to_exitcode(status)) > 0:
        raise SystemExit(f"The run ended with status {code}.")
    return code == 0


def main() -> int:
    """Kill parents and report; exit code 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", choices=("sqlite", "postgres"), default="sqlite")
    given = parser.parse_args()
    generator, problems, num_kills, num_runs, num_stored = random.Random(given.seed), [], 0, 0, 0
    with ExitStack() as stack:
        saver, make_folder = choose_place(given.checkpoint, stack)
        options = ServerOptions(latency=Latency(median_s=0.03, sigma=0.5))
        server = stack.enter_context(
            spawn_fake_server("tests.support.oracle:build_responder", config={"seed": 3}, options=options)
        )
        settings = make_settings(server.base_url, depth=4, beam_size=2, queries_per_level=2)
        unbroken: dict[str, tuple[str, float]] = {}
        while num_kills < given.kills:
            name = PARENTS[num_runs % len(PARENTS)]
            folder = make_folder()
            if name not in unbroken:
                began = time.monotonic()
                run_in_child(name, settings, folder, saver, None)
                unbroken[name] = (folder / "found.json").read_text(), time.monotonic() - began
                folder = make_folder()
            expected, length_s = unbroken[name]
            delays = [generator.uniform(0, 1) * length_s for _ in range(generator.choice([1, 1, 2, 3]))]
            for delay_s in [*delays, None]:
                committed = asyncio.run(read_committed(folder, saver)) if delay_s != delays[0] else set()
                num_asked, num_stored = len(read_asked(folder)), num_stored + len(committed)
                is_done = run_in_child(name, settings, folder, saver, delay_s)
                if again := committed & set(read_asked(folder)[num_asked:]):
                    problems.append(f"{name}: {len(again)} calls were asked again that were in the checkpointer")
                if is_done:
                    break
                num_kills += 1
            num_runs += 1
            if (folder / "found.json").read_text() != expected:
                problems.append(f"{name}: the result differs from the unbroken run's")
    print(f"{num_kills} kills of {num_runs} parents, {num_stored} calls in the checkpointer after them")
    for problem in problems:
        print(f"PROBLEM {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
