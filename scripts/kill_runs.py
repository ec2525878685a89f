"""Kill runs with SIGKILL at random points, resume them, and compare the end with an unbroken run's, byte for byte.

Each run is a child process that is forked from this one, so that its imports are warm and a kill can hit its first
milliseconds. The model is the synthetic world behind a fake server in a process of its own, which logs every request.
After each kill the committed calls are read from the store; none of them may be asked for again.

    python scripts/kill_runs.py --kills 40
    python scripts/kill_runs.py --kills 40 --faults    # a fifth of all calls goes wrong besides
    python scripts/kill_runs.py --kills 40 --checkpoint postgres    # starts a server of its own; extra test-postgres
    python scripts/kill_runs.py --kills 40 --checkpoint postgres --kill-database 0.2

    python scripts/kill_runs.py --attempts 2 3 4 6    # no kill: what faults change, by max_reply_attempts

With ``--kill-database``, a share of the kills hits the database server, which is started again after up to 2 s; every
other time the run is killed with it. With faults, what a run cost depends on the kills; what it found is compared.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from drpo_graph.calls.ledger import Ledger
from drpo_graph.errors import CheckpointError, NoRunsError, RunNotFoundError
from drpo_graph.runs.runner import RunOptions, optimize, resume
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.protocols import Storage
from drpo_graph.storage.sqlite_file import SqliteStorage
from tests.support.fake_server import (
    FAULT_KINDS,
    FakeServer,
    FaultKind,
    FaultPlan,
    Latency,
    LogEntry,
    ServerOptions,
    read_log,
    spawn_fake_server,
)
from tests.support.oracle import build_responder
from tests.support.world import INITIAL_PROMPT, World

if TYPE_CHECKING:
    from tests.support.postgres import PostgresServer

THREAD = "killed"
AWAY = 3
"""What a child ends with that could not use its place."""
ASKED = "asked.txt"
"""In a run's folder: the key of each call as it begins to be made, beside what the run itself says of it."""
QUERIES = World(seed=0).train_queries[:60]
FindPlace = Callable[[Path], Storage]
"""Gives each run folder its place: a file in it, or a database of its own."""
Aim = Callable[[float, random.Random], "Kill"]
"""Chooses what is killed after a delay."""
SEARCHES: dict[str, dict[str, Any]] = {
    "compat 2x3": {"compat": "drpo", "depth": 6, "beam_size": 2, "n_actions": 3},
    "default 2x3": {"depth": 4, "queries_per_level": 3, "pool_size": 6},
}

FAULTS = FaultPlan(
    rate=0.2,
    # Equal samples are good replies, and change what is found.
    kinds=[kind for kind in FAULT_KINDS if kind != "repeated"],
    max_per_request=1_000,
    retry_after_s=0.05,
    spares_text=True,
)
# The published search asks for no reply again: only what the calls themselves suffer can be mended there.
FAULTS_BY_SEARCH = {
    "compat 2x3": replace(FAULTS, kinds=[*FAULT_KINDS[: FAULT_KINDS.index("empty")], "prose", "fenced"]),
    "default 2x3": FAULTS,
}
WITH_FAULTS: dict[str, Any] = {"retry_wait_s": 0.02, "timeout_s": 1.0, "max_retries": 8, "max_reply_attempts": 6}
RATES = (0.05, 0.2)
"""Of replies that cannot be used, for ``--attempts``: what is wrong with a try never changes a reply."""
UNUSABLE: list[FaultKind] = ["empty", "truncated", "refusal", "wrong_names", "out_of_range", "words"]
COSTS = ("usage_by_role", "failures_by_kind", "unusable_by_kind")


@dataclass
class Tally:
    """What the kills did."""

    num_kills: int = 0
    num_database_kills: int = 0
    """Of those."""
    num_committed: int = 0
    """Calls that were in the store after a kill, all kills together."""
    num_runs: int = 0
    num_calls: int = 0
    num_faults: int = 0
    num_repeats: int = 0
    """Calls that the server answered twice: answered, and killed before the answer was committed."""
    lags_s: list[float] = field(default_factory=list)
    """Time from the first answer of a repeated call to the kill."""
    problems: list[str] = field(default_factory=list)


def make_settings(base_url: str, search: dict[str, Any]) -> Settings:
    """Return the settings of a search against the fake server."""
    roles = {
        f"{role}_{name}": value
        for role in ("base", "metrics", "critic", "optimizer")
        for name, value in (("model", "openai:fake"), ("base_url", base_url))
    }
    return build_settings({"initial_prompt": INITIAL_PROMPT, "max_retries": 3, **roles, **search})


class Kill(NamedTuple):
    """A kill to come."""

    delay_s: float
    database: "PostgresServer | None" = None
    """What to kill instead of the run, or with it."""
    down_s: float = 0.0
    hits_run: bool = True


def log_calls(path: Path) -> None:
    """Have this process write down the key of each call that it begins to make."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    once = Ledger.once

    async def log_once(self: Ledger, key: str, make: Any, **rest: Any) -> Any:
        async def log_and_make() -> Any:
            os.write(file, f"{key}\n".encode())
            return await make()

        return await once(self, key, log_and_make, **rest)

    Ledger.once = log_once  # type: ignore[method-assign]


def read_asked(folder: Path) -> list[str]:
    """Return the keys of the calls that were begun, in order."""
    path = folder / ASKED
    return path.read_text().splitlines() if path.exists() else []


def read_committed(storage: Storage) -> set[str]:
    """Return the keys of the calls that are in the store."""

    async def read(place: Storage) -> set[str]:
        try:
            async with place.open_for_reading() as reader:
                return set(await Archive(reader.store, THREAD).get_all("calls"))
        except NoRunsError:
            return set()

    if not isinstance(storage, SqliteStorage):
        return asyncio.run(read(storage))
    if not storage.path.exists():
        return set()
    with tempfile.TemporaryDirectory() as copies:
        # Of a copy: to look would take the log in, which the resumed run is to find as the kill left it.
        for path in storage.path.parent.glob(f"{storage.path.name}*"):
            if path.is_file():
                shutil.copy(path, copies)
        return asyncio.run(read(SqliteStorage(Path(copies) / storage.path.name)))


def carry_out(settings: Settings, folder: Path, storage: Storage) -> None:
    """Start the run, or resume it where it exists: what a user's supervisor would do."""
    folder.mkdir(exist_ok=True)
    log_calls(folder / ASKED)
    options = RunOptions(checkpoint=storage, log_dir=folder / "run")

    async def go() -> None:
        if storage.exists():
            try:
                await resume(THREAD, options=options, changes=settings.model_dump(include={"base", "critic"}))
                return
            except (RunNotFoundError, NoRunsError):
                pass  # Killed before it was listed: there is nothing to resume yet.
        await optimize(QUERIES, settings=settings, thread_id=THREAD, options=options)

    asyncio.run(go())


class Ending(NamedTuple):
    """How a child ended."""

    is_done: bool
    """By itself, with its result."""
    killed_at: float | None
    """When a kill met it, or its database."""


def run_in_child(settings: Settings, folder: Path, storage: Storage, kill: Kill | None) -> Ending:
    """Run in a forked child and deal it a kill.

    Raises:
        RuntimeError: the child failed.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            carry_out(settings, folder, storage)
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  # The child's only way to tell.
            if kill is None or kill.database is None or not isinstance(error, CheckpointError):
                print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(AWAY if isinstance(error, CheckpointError) else 1)
    started_at, killed_at = time.monotonic(), None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            # Without its database, a run that is just beginning stops at once.
            code = os.waitstatus_to_exitcode(status)
            is_hit = killed_at is not None and ((kill.hits_run and code < 0) or (kill.database and code == AWAY))
            if code != 0 and not is_hit:
                raise RuntimeError(f"the run ended with status {status}")
            return Ending(code == 0, killed_at)
        if kill is not None and killed_at is None and time.monotonic() - started_at >= kill.delay_s:
            killed_at = time.time()
            deal(kill, child)
        time.sleep(0.002)


def deal(kill: Kill, child: int) -> None:
    """Kill the run, or the database, or both; the database is there again at the end."""
    if kill.database is not None:
        kill.database.kill()
    if kill.hits_run:
        os.kill(child, signal.SIGKILL)
    if kill.database is not None:
        time.sleep(kill.down_s)
        kill.database.start()


def break_run(
    settings: Settings, folder: Path, kills: Sequence[Kill], *, storage: Storage, tally: Tally
) -> list[float]:
    """Deal a run its kills, then let it end; return the times of those that hit it."""
    times: list[float] = []
    for kill in [*kills, None]:
        committed, num_asked = read_committed(storage) if times else set(), len(read_asked(folder))
        tally.num_committed += len(committed)
        ending = run_in_child(settings, folder, storage, kill)
        if again := committed & set(read_asked(folder)[num_asked:]):
            tally.problems.append(f"{folder.name}: {len(again)} calls were asked again that were in the store")
        if ending.killed_at is not None:
            times.append(ending.killed_at)
            tally.num_database_kills += kill is not None and kill.database is not None
        if ending.is_done:
            break
    if missing := committed - read_committed(storage):
        tally.problems.append(f"{folder.name}: {len(missing)} calls are no longer in the store")
    tally.num_kills += len(times)
    tally.num_runs += 1
    return times


def read_found(folder: Path, *, has_faults: bool) -> object:
    """Return a run's result: every byte of it, or without what depends on when a fault met it."""
    written = (folder / "run" / "result.json").read_bytes()
    if not has_faults:
        return written
    return {name: value for name, value in json.loads(written).items() if name not in COSTS}


def check_run(folder: Path, unbroken: object, log: Sequence[LogEntry], kills: Sequence[float], tally: Tally) -> None:
    """Compare a finished run with the unbroken one, and its requests with what was committed."""
    has_faults = any(entry["fault"] for entry in log)
    tally.num_faults += sum(entry["event"] == "start" and entry["fault"] is not None for entry in log)
    if read_found(folder, has_faults=isinstance(unbroken, dict)) != unbroken:
        tally.problems.append(f"{folder.name}: result.json differs from the unbroken run's")
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    committed = Counter(one["key"] for one in events if one["type"] == "call_finished" and not one["from_ledger"])
    twice = [key for key, number in committed.items() if number > 1]
    if twice:
        tally.problems.append(f"{folder.name}: {len(twice)} committed calls were made again")
    answers: dict[str, list[float]] = {}
    for entry in log:
        if entry["event"] == "end" and entry["status"] == 200 and entry["fault"] is None:
            answers.setdefault(entry["key"], []).append(float(entry["t_end"] or 0))
    tally.num_calls += len(answers)
    # A request is asked again as well where its first answer was of no use.
    for times in answers.values() if not has_faults else ():
        tally.num_repeats += len(times) - 1
        for answered_at in sorted(times)[:-1]:
            tally.lags_s.append(min((kill - answered_at for kill in kills if kill >= answered_at), default=0.0))


def kill_search(
    name: str,
    search: dict[str, Any],
    *,
    find_place: FindPlace,
    num_kills: int,
    folder: Path,
    seed: int,
    tally: Tally,
    faults: FaultPlan | None = None,
    aim: Aim,
) -> None:
    """Break runs of one search until it was killed often enough."""
    generator = random.Random(f"{seed}/{name}")
    slug = name.replace(" ", "-")
    options = ServerOptions(
        latency=Latency(median_s=0.03, sigma=0.5), log_path=str(folder / f"{slug}.log"), faults=faults
    )
    with spawn_fake_server("tests.support.oracle:build_responder", config={"seed": 0}, options=options) as server:
        settings = make_settings(server.base_url, {**search, **(WITH_FAULTS if faults else {})})
        unbroken = folder / f"{slug}-unbroken"
        started = time.monotonic()
        run_in_child(settings, unbroken, find_place(unbroken), None)
        length_s = time.monotonic() - started
        expected = read_found(unbroken, has_faults=faults is not None)
        target = tally.num_kills + num_kills
        while tally.num_kills < target:
            # A third in the first moments, a third anywhere, a third towards the last level; half are killed again.
            first = generator.choice([(0.0, 0.25), (0.0, 1.0), (0.8, 1.0)])
            delays = [generator.uniform(*first) * length_s]
            delays += [generator.uniform(0.05, 0.8) * length_s for _ in range(generator.choice([0, 0, 1, 2]))]
            blows = [aim(delay_s, generator) for delay_s in delays]
            log_start = len(read_log(folder / f"{slug}.log"))
            run = folder / f"{slug}-{tally.num_runs}"
            kills = break_run(settings, run, blows, storage=find_place(run), tally=tally)
            check_run(run, expected, read_log(folder / f"{slug}.log")[log_start:], kills, tally)


def measure_attempts(attempts: Sequence[int], *, num_worlds: int, depth: int, folder: Path) -> None:
    """Print, for each number of attempts and rate of faults, in how many worlds a run finds what it finds without."""

    async def run(seed: int, rate: float, max_attempts: int) -> tuple[str, int]:
        faults = replace(FAULTS, rate=rate, seed=seed, kinds=UNUSABLE) if rate else None
        name = f"{seed}-{rate}-{max_attempts}"
        async with FakeServer(build_responder(seed=seed), ServerOptions(faults=faults)) as server:
            values = {**SEARCHES["default 2x3"], "depth": depth, **WITH_FAULTS, "max_reply_attempts": max_attempts}
            options = RunOptions(checkpoint=folder / f"{name}.sqlite", writes_files=False)
            settings = make_settings(server.base_url, values)
            result = await optimize(World(seed).train_queries[:60], settings=settings, thread_id="t", options=options)
        return result.system_prompt, sum(usage.calls for usage in result.usage_by_role.values())

    worlds = range(num_worlds)
    unbroken = [asyncio.run(run(seed, 0.0, attempts[0])) for seed in worlds]
    calls = sum(num_calls for _, num_calls in unbroken)
    print("| faults | attempts | equal prompts | calls |\n|---|---|---|---|")
    print(f"| none | any | {num_worlds} of {num_worlds} | 100% |", flush=True)
    for rate in RATES:
        for max_attempts in attempts:
            found = [asyncio.run(run(seed, rate, max_attempts)) for seed in worlds]
            equal = sum(one[0] == other[0] for one, other in zip(found, unbroken, strict=True))
            share = sum(num_calls for _, num_calls in found) / calls
            print(f"| {rate:.0%} | {max_attempts} | {equal} of {num_worlds} | {share:.0%} |", flush=True)


def choose_place(kind: str, stack: ExitStack, *, database_share: float) -> tuple[FindPlace, Aim]:
    """Return where runs are kept, and what is killed there; a database server runs until the stack is closed."""
    if kind == "sqlite":
        return (lambda folder: SqliteStorage(folder / "checkpoints.sqlite")), lambda delay_s, _: Kill(delay_s)
    from drpo_graph.storage.postgres import PostgresStorage
    from tests.support.postgres import run_postgres

    server = stack.enter_context(run_postgres())
    # Else each start after a kill has every file of every database written out.
    server.sync_never()

    def aim(delay_s: float, generator: random.Random) -> Kill:
        if generator.random() >= database_share:
            return Kill(delay_s)
        return Kill(delay_s, server, generator.uniform(0, 2), hits_run=generator.random() < 0.5)

    return (lambda _: PostgresStorage(server.make_database())), aim


def main() -> int:
    """Kill runs and report; exit code 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", action="store_true", help="let a fifth of all calls go wrong")
    parser.add_argument("--checkpoint", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--kill-database", type=float, default=0.0, metavar="SHARE", help="of the kills, with postgres")
    parser.add_argument("--attempts", type=int, nargs="+", metavar="N", help="measure these, and kill nothing")
    parser.add_argument("--worlds", type=int, default=8, help="of --attempts")
    parser.add_argument("--depth", type=int, default=12, help="of the searches of --attempts")
    given = parser.parse_args()
    if given.kill_database and given.checkpoint != "postgres":
        parser.error("--kill-database needs --checkpoint postgres")
    if given.attempts:
        with tempfile.TemporaryDirectory() as place:
            measure_attempts(given.attempts, num_worlds=given.worlds, depth=given.depth, folder=Path(place))
        return 0
    tally = Tally()
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory())
        find_place, aim = choose_place(given.checkpoint, stack, database_share=given.kill_database)
        for index, (search_name, search) in enumerate(SEARCHES.items()):
            share = given.kills // len(SEARCHES) + (index < given.kills % len(SEARCHES))
            kill_search(
                search_name,
                search,
                find_place=find_place,
                num_kills=share,
                folder=Path(name),
                seed=given.seed,
                tally=tally,
                faults=FAULTS_BY_SEARCH[search_name] if given.faults else None,
                aim=aim,
            )
            print(f"{search_name}: {tally.num_kills} kills so far, {len(tally.problems)} problems", flush=True)
    report(tally)
    return 1 if tally.problems else 0


def report(tally: Tally) -> None:
    """Print what the kills did."""
    lag = f"{1000 * max(tally.lags_s):.0f} ms" if tally.lags_s else "none seen"
    print(
        f"{tally.num_kills} kills of {tally.num_runs} runs ({tally.num_database_kills} of the database), "
        f"{tally.num_calls} distinct calls, {tally.num_faults} faults"
    )
    print(f"calls in the store after a kill: {tally.num_committed} in all")
    print(f"answered but killed before the commit, so asked again: {tally.num_repeats}; longest commit lag: {lag}")
    for problem in tally.problems:
        print(f"PROBLEM {problem}")


if __name__ == "__main__":
    sys.exit(main())
