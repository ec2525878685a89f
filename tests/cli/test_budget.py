"""A run that spends its budget stops with 3, says what it found, and goes on with a larger cap."""

import asyncio
import json
import re
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from langgraph.store.base import BaseStore, Op, Result, SearchOp

from drpo_graph.calls.ledger import Ledger
from drpo_graph.errors import BudgetSpentError
from drpo_graph.events.schema import Warned
from drpo_graph.records import RunResult
from drpo_graph.runs.runner import RunOptions, optimize
from drpo_graph.settings.layers import build_settings
from drpo_graph.stop import StopSignal
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.protocols import Checkpoint
from drpo_graph.storage.sqlite_file import SqliteStorage
from tests.support.command import (
    MODEL,
    SMALL,
    Drpo,
    assert_one_line,
    finish,
    finished_keys,
    list_runs,
    read_result,
    serve_world,
    spawn_drpo,
    wait_for,
)
from tests.support.fake_server import FakeServer, Latency

START = ("optimize", *SMALL, "--thread-id", "t", "--display", "none")
RESUME = ("resume", "t", "--display", "none")
PRICE = ("--price", "openai:world=100,20,10")


def test_a_spent_budget_stops_the_run_with_one_line_and_the_command_that_goes_on(
    drpo: Drpo, folder: Path, world: FakeServer
) -> None:
    before = len(finished_keys(world))
    outcome = drpo(*START, "--max-calls", "20")
    assert_one_line(
        outcome,
        3,
        "interrupted: The budget is spent: 20 of 20 calls (--max-calls).",
        "Best so far: ",
        "drpo_runs/t/best_prompt.txt",
        "Resume with: drpo resume t --max-calls 40",
    )
    assert "resume with: drpo resume t --max-calls 40\n" in drpo("show", "t").out
    assert len(finished_keys(world)) == before + 20
    assert list_runs(drpo) == {"t": "interrupted"}
    assert "20 of 20 calls" in drpo("runs").out
    interim = read_result(folder / "drpo_runs")
    assert interim.status == "interrupted"
    shown = drpo("show", "t").out
    assert "best prompt so far" in shown
    assert (folder / "drpo_runs" / "t" / "best_prompt.txt").read_text() == f"{interim.system_prompt}\n"
    assert interim.system_prompt.splitlines()[0] in shown


def test_a_run_stopped_before_its_first_score_says_so(drpo: Drpo, folder: Path) -> None:
    outcome = drpo(*START, "--max-calls", "1")
    assert_one_line(outcome, 3, "1 of 1 calls", "The initial prompt is not scored yet.")
    assert not (folder / "drpo_runs" / "t" / "best_prompt.txt").exists()


@pytest.mark.slow
def test_over_three_resumes_and_a_kill_the_total_and_the_result_are_right(
    drpo: Drpo, folder: Path, unbroken: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_world(latency_s=0.05) as server:
        options = server.options
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

        def num_sent() -> int:
            return sum(entry["event"] == "start" for entry in list(server.log))

        def num_counted() -> int:
            return asyncio.run(count_spent(folder))

        assert drpo(*START, "--max-calls", "8").code == 3
        assert num_sent() == num_counted() == 8
        # Killed with some calls finished and others in flight: these may have been billed, and count.
        killed = spawn_resumed(folder, server, "--max-calls", "18")
        wait_for(lambda: len(finished_keys(server)) >= 11)
        server.options = replace(options, latency=Latency(60))
        wait_until_quiet(num_sent)
        killed.kill()
        finish(killed)
        server.options = options
        num_lost = num_sent() - len(finished_keys(server))
        assert num_lost > 0
        assert num_sent() == num_counted()
        # Without a new cap the raised one stands.
        assert_one_line(drpo(*RESUME), 3, "18 of 18 calls")
        assert num_sent() == num_counted() == 18
        assert drpo(*RESUME, "--max-calls", "22").code == 3
        assert num_sent() == num_counted() == 22
        assert drpo(*RESUME, "--max-calls", "200").code == 0
        assert read_result(folder / "drpo_runs") == unbroken
        assert num_sent() == num_counted() == unbroken_calls(unbroken) + num_lost


def wait_until_quiet(count: Callable[[], int], *, quiet_s: float = 1.0) -> None:
    """Return when a count has stood still for a while."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.02)
        if count() != last:
            last, since = count(), time.monotonic()


def unbroken_calls(result: RunResult) -> int:
    return sum(usage.calls for usage in result.usage_by_role.values())


async def count_spent(folder: Path) -> int:
    """Return the calls that the run's budget has counted, those lost with a killed process included."""
    async with SqliteStorage(folder / "drpo_runs" / "checkpoints.sqlite").open_for_reading() as reader:
        ledger = Ledger(Archive(reader.store, "t"), StopSignal())
        await ledger.load()
        return ledger.budget.spent.calls


def spawn_resumed(folder: Path, server: FakeServer, *arguments: str) -> "subprocess.Popen[str]":
    return spawn_drpo(*RESUME, *arguments, folder=folder, environment={"OPENAI_BASE_URL": server.base_url})


def test_money_is_capped_and_told_by_role(drpo: Drpo, folder: Path) -> None:
    outcome = drpo(*START, *PRICE, "--max-cost", "1.2")
    assert_one_line(outcome, 3, "(--max-cost)", "of $1.20")
    spent = read_result(folder / "drpo_runs").cost_by_role
    assert 0 < sum(spent.values()) <= 1.2
    assert "--max-cost 2.4" in outcome.err
    # The price is kept with the run.
    done = drpo("resume", "t", "--display", "plain", "--max-cost", "100")
    assert done.code == 0
    result = read_result(folder / "drpo_runs")
    usage = result.usage_by_role["critic"]
    assert result.cost_by_role["critic"] == (usage.prompt_tokens * 100 + usage.completion_tokens * 20) / 10**6
    assert re.search(r"level 2/2 .* cost \$\d", done.out)
    (total,) = re.findall(r"^total .*\$(\d+\.\d\d)$", done.out, re.MULTILINE)
    assert float(total) == pytest.approx(sum(result.cost_by_role.values()), abs=0.005)


def test_a_money_cap_without_a_price_is_refused_before_anything_starts(
    drpo: Drpo, folder: Path, world: FakeServer
) -> None:
    num_requests = len(world.log)
    assert_one_line(drpo(*START, "--max-cost", "1"), 2, "'openai:world'", "--price openai:world=IN,OUT")
    assert list(folder.iterdir()) == []
    assert len(world.log) == num_requests


def test_a_price_for_a_model_that_no_role_uses_is_refused(drpo: Drpo, folder: Path) -> None:
    typo = ("--price", "openai:wrld=1,2")
    assert_one_line(drpo(*START, *typo), 2, "--price openai:wrld", "openai:world")
    assert list(folder.iterdir()) == []
    assert drpo(*START, "--max-calls", "2").code == 3
    assert_one_line(drpo(*RESUME, *typo), 2, "--price openai:wrld", "openai:world")


def test_prices_and_caps_may_stand_in_a_settings_file(drpo: Drpo, folder: Path) -> None:
    (folder / "run.toml").write_text('max_time = "2h"\nmax_cost = 90\n[prices."openai:world"]\ninput = 1\noutput = 2\n')
    assert drpo(*START, "--config", "run.toml").code == 0
    assert sum(read_result(folder / "drpo_runs").cost_by_role.values()) > 0
    run = json.loads(drpo("show", "t", "--json").out)["run"]
    assert run["settings"]["max_time"] == 7200


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--max-time", "soon"), "max_time: expected seconds or a duration such as 90m"),
        (("--max-calls", "0"), "max_calls: expected"),
        (("--max-cost", "-1"), "max_cost: expected"),
        (("--price", "openai:world"), "--price openai:world: expected MODEL=IN,OUT"),
    ],
)
def test_what_is_no_budget_is_refused(flags: tuple[str, str], named: str, drpo: Drpo) -> None:
    assert_one_line(drpo("optimize", *MODEL, *flags), 2, named)


def test_a_cap_that_is_given_at_a_resume_and_will_not_do_is_told(drpo: Drpo) -> None:
    assert drpo(*START, "--max-calls", "8").code == 3
    outcome = drpo("resume", "t", "--display", "jsonl", "--max-calls", "20")
    assert outcome.code == 3
    told = [event.message for event in outcome.events() if isinstance(event, Warned)]
    assert "--max-calls is 20 calls (by lengths that are usual)" in told[0]


def test_a_run_started_without_a_budget_may_get_one(drpo: Drpo, folder: Path, unbroken: RunResult) -> None:
    assert drpo(*START, "--max-time", "0.001").code == 3
    outcome = drpo(*RESUME, "--max-time", "1h", "--max-calls", "5")
    assert_one_line(outcome, 3, "5 of 5 calls")
    assert drpo(*RESUME, "--set", "max_calls=null").code == 0
    assert read_result(folder / "drpo_runs") == unbroken


class UnreadableStore(BaseStore):
    """A store whose levels cannot be read."""

    def __init__(self, store: BaseStore) -> None:
        self._store = store

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations."""
        return self._store.batch(ops)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations, or fail."""
        given = list(ops)
        if any(isinstance(op, SearchOp) and op.namespace_prefix[-1] == "levels" for op in given):
            raise sqlite3.OperationalError("disk I/O error")
        return await self._store.abatch(given)


class UnreadableStorage(SqliteStorage):
    """A file whose levels cannot be read."""

    @asynccontextmanager
    async def open_run(self, thread_id: str, *, must_exist: bool = False) -> AsyncIterator[Checkpoint]:
        """Hold a run and open its place for work."""
        async with super().open_run(thread_id, must_exist=must_exist) as checkpoint:
            yield replace(checkpoint, store=UnreadableStore(checkpoint.store))


@pytest.mark.usefixtures("folder")
async def test_what_cannot_be_told_with_it_does_not_hide_that_the_budget_is_spent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = build_settings({"model": "openai:world", "depth": 3, "n_actions": 2, "beam_size": 1, "max_calls": 20})
    with pytest.raises(BudgetSpentError, match="20 of 20 calls"):
        await optimize(settings=settings, options=RunOptions(checkpoint=UnreadableStorage(Path("runs.sqlite"))))
    assert "disk I/O error" in caplog.text
