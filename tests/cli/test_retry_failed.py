"""A run whose critic was broken for a while: it stops, and resuming can ask again for what could not be used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from drpo_graph.records import RunResult
from tests.support.command import KEY, SMALL, Drpo, assert_one_line, read_result, serve
from tests.support.fake_server import FakeServer, Reply, ServerOptions
from tests.support.oracle import build_responder, role_of

Responder = Callable[[dict[str, object]], Reply]
START = ("optimize", *SMALL, "--thread-id", "t", "--display", "none")
RESUME = ("resume", "t", "--display", "none")


class Moody:
    """The world, with a critic that can be broken."""

    def __init__(self) -> None:
        self.is_broken = True
        self._world: Responder = build_responder(seed=3)

    def __call__(self, body: dict[str, object]) -> Reply:
        """Return the world's reply, or one of no use from the critic."""
        messages = body["messages"]
        assert isinstance(messages, list)
        is_spoilt = self.is_broken and role_of(messages) == "critic"
        return Reply(["It depends."]) if is_spoilt else self._world(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> "tuple[Moody, str]":
    moody = Moody()
    with serve(moody, ServerOptions(models=["world"], api_key=KEY)) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield moody, running  # type: ignore[misc]


def test_stalled_run_stays_stalled_until_it_may_ask_again(
    drpo: Drpo, folder: Path, server: tuple[Moody, FakeServer], unbroken: RunResult
) -> None:
    moody, running = server
    stop = drpo(*START)
    assert_one_line(stop, 1, "No candidate could be scored, 2 times in a row", "drpo resume t --retry-failed")
    moody.is_broken = False
    num_before = len(running.finished)
    assert_one_line(drpo(*RESUME), 1, "No candidate could be scored")
    assert len(running.finished) == num_before
    outcome = drpo(*RESUME, "--retry-failed")
    assert outcome.code == 0
    result = read_result(folder / "drpo_runs")
    assert result.reward is not None
    assert result.depth == unbroken.depth
    # The first round's, on queries that the search has left behind; those of the second were mended.
    assert result.failures_by_kind == {"unparsable": 2}
    assert result.unusable_by_kind["unparsable"] > 0
    # What the unusable replies cost is still counted.
    answered = [entry for entry in running.finished if entry["status"] == 200]
    assert sum(usage.calls for usage in result.usage_by_role.values()) == len(answered)


def test_finished_run_has_nothing_to_ask_again(drpo: Drpo) -> None:
    assert drpo(*START).code == 0
    outcome = drpo(*RESUME, "--retry-failed")
    assert (outcome.code, outcome.err) == (0, "")


def test_command_that_a_stopped_run_prints_is_the_one_that_mends_it(
    drpo: Drpo, folder: Path, server: tuple[Moody, FakeServer]
) -> None:
    moody, _ = server
    stop = drpo(*START, "--checkpoint", "other.sqlite")
    assert_one_line(stop, 1, "Resume with: drpo resume t --checkpoint other.sqlite --retry-failed")
    moody.is_broken = False
    assert drpo(*stop.err.strip().partition("Resume with: drpo ")[2].split(), "--display", "none").code == 0


def test_refused_command_lets_nothing_be_asked_again(drpo: Drpo, server: tuple[Moody, FakeServer]) -> None:
    moody, running = server
    assert drpo(*START).code == 1
    moody.is_broken = False
    for refused in (["--set", "depth=9"], ["--set", "critic.model=openai:other"], ["other.txt"]):
        Path("other.txt").write_text("Another query?\n")
        assert drpo(*RESUME, "--retry-failed", *refused).code == 2
    num_before = len(running.finished)
    assert_one_line(drpo(*RESUME), 1, "No candidate could be scored")
    assert len(running.finished) == num_before
