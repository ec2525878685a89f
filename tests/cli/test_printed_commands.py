"""What is printed as a next step works as it is printed: in folders with blanks, for any place of runs and of drpo."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oirl.collection.script import answer, write_prompts, write_sums
from tests.support.command import KEY, MODEL, ROOT, Drpo, Outcome, serve
from tests.support.fake_server import FakeServer, ServerOptions

PLAIN = ("--display", "plain")
SEARCH = (*MODEL, "--depth", "2", "--n-actions", "2", "--beam-size", "1", "--queries-per-level", "1")
CALLED = "/opt/my tools/drpo"
"""Not on the PATH."""
_PRINTED = re.compile(rf"^(?:next:? +| +|[\w ]+ with: )'{CALLED}' (.+)$", re.MULTILINE)
_OWN_CODE = """
from drpo_graph import Reward

async def kind(query, response):
    return Reward(score=4.0)

async def any(query, response, reference):
    # Of one outcome alone nothing could be learned.
    return float("Level 0" not in response)
"""


def printed(outcome: Outcome) -> list[list[str]]:
    """Return the commands of ``drpo`` that stand as next steps in what a command wrote, split as a shell does."""
    return [shlex.split(one) for one in _PRINTED.findall(outcome.out + outcome.err)]


@pytest.fixture(autouse=True)
def work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a blank in its path."""
    work = folder / "work here"
    work.mkdir()
    monkeypatch.chdir(work)
    write_sums(Path("sums.jsonl"), 2)
    write_prompts(Path("prompts.jsonl"))
    Path("own_code.py").write_text(_OWN_CODE)
    monkeypatch.syspath_prepend(work)
    monkeypatch.setattr(sys, "argv", [CALLED])
    return work


@pytest.fixture
def place(folder: Path) -> tuple[str, str]:
    """The flag for runs that are kept in another folder with a blank in its path."""
    (folder / "my runs").mkdir()
    return "--checkpoint", str(folder / "my runs" / "runs.sqlite")


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that adds up."""
    with serve(answer, ServerOptions(api_key=KEY)) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_after_a_search(
    is_elsewhere: bool, drpo: Drpo, folder: Path, place: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = drpo("optimize", *SEARCH, *(place if is_elsewhere else ()), "--thread-id", "t", *PLAIN)
    if is_elsewhere:
        monkeypatch.chdir(folder)
    commands = printed(done)
    assert [one[0] for one in commands] == ["show", "events", "generate", "export"]
    for command in commands:
        outcome = drpo(*command)
        assert outcome.code == 0, outcome.err
        assert outcome.out


def test_after_icl(drpo: Drpo, place: tuple[str, str], world: FakeServer) -> None:
    start = ("icl", *MODEL, "--num-examples", "2", "--num-iters", "1", *place, "--thread-id", "t")
    done = drpo(*start, *PLAIN)
    assert done.code == 0, done.err
    commands = printed(done)
    assert [one[0] for one in commands] == ["show", "events"]
    for command in commands:
        outcome = drpo(*command)
        assert (outcome.code, bool(outcome.out)) == (0, True), outcome.err


STOPPED = {
    "a search": ("optimize", *SEARCH),
    "a search with own code": ("optimize", *SEARCH, "--reward", "own_code:kind", "--reward-weight", "0.5"),
    "ICL": ("icl", *MODEL, "--num-examples", "2", "--num-iters", "1"),
}


@pytest.mark.parametrize("kind", STOPPED)
def test_after_a_stop_by_the_budget(kind: str, drpo: Drpo, place: tuple[str, str]) -> None:
    stopped = drpo(*STOPPED[kind], *place, "--thread-id", "t", "--max-calls", "5", *PLAIN)
    assert stopped.code == 3, stopped.err
    (command,) = printed(stopped)
    # The cap that it names is larger, and may be too small again.
    while (outcome := drpo(*command, *PLAIN)).code == 3:
        (command,) = printed(outcome)
    assert outcome.code == 0, outcome.err


def test_after_a_collection(drpo: Drpo, place: tuple[str, str], sums: FakeServer, world: FakeServer) -> None:
    pytest.importorskip("sklearn", reason="needs the extra oirl")
    start = ("oirl", "collect", "sums.jsonl", "--prompts", "prompts.jsonl", "--checker", "own_code:any", *place)
    stopped = drpo(*start, "--model", "openai:scripted", "--thread-id", "t", "--max-calls", "5", *PLAIN)
    (command,) = printed(stopped)
    assert command[0] == "resume"
    done = drpo(*command, "--max-calls", "50", *PLAIN)
    assert done.code == 0, done.err
    commands = printed(done)
    assert [one[1] for one in commands] == ["train", "evaluate"]
    for command in commands:
        outcome = drpo(*command)
        # The embedded embeddings are an extra of their own.
        assert outcome.code == 0 or "pip install" in outcome.err, outcome.err


def test_from_a_search_to_a_router(drpo: Drpo, place: tuple[str, str], world: FakeServer) -> None:
    pytest.importorskip("sklearn", reason="needs the extra oirl")
    assert drpo("optimize", *SEARCH, *place, "--thread-id", "t", "--display", "none").code == 0
    gathered = drpo("oirl", "from-run", "t", *place, "--output", "my tries.jsonl")
    (train,) = printed(gathered)
    quick = ("--reward-model", "neighbours", "--embeddings", "openai:world", "--embeddings-base-url", world.base_url)
    trained = drpo(*train, *quick)
    assert trained.code == 0, trained.err
    (select,) = printed(trained)
    chosen = drpo(*select)
    assert (chosen.code, bool(chosen.out)) == (0, True), chosen.err


def test_while_a_run_waits_for_a_decision(drpo: Drpo, place: tuple[str, str]) -> None:
    waiting = drpo("optimize", *SEARCH, *place, "--thread-id", "t", "--approve", *PLAIN)
    assert waiting.code == 4, waiting.err
    (review,) = printed(waiting)
    assert printed(drpo("show", "t", *place)) == [review]
    (decide,) = printed(drpo(*review))
    assert drpo(*decide).code == 0


@pytest.mark.parametrize("is_joined", [False, True])
def test_in_errors(is_joined: bool, drpo: Drpo, place: tuple[str, str]) -> None:
    where = ("=".join(place),) if is_joined else place
    assert drpo("optimize", *SEARCH, *where, "--thread-id", "t", "--display", "none").code == 0
    for command in (("optimize", *MODEL, "--thread-id", "t"), ("show", "u")):
        (advised,) = re.findall(rf"`'{CALLED}' (.+?)`", drpo(*command, *where).err)
        outcome = drpo(*shlex.split(advised))
        assert outcome.code == 0, outcome.err


def test_what_the_demo_offers_needs_no_key(drpo: Drpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    (command,) = re.findall(r"\$\(BIN\)/drpo (.* --dry-run)\"", (ROOT / "Makefile").read_text(encoding="utf-8"))
    outcome = drpo(*shlex.split(command))
    assert (outcome.code, outcome.err) == (0, "")
