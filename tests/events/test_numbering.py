"""A run's events are numbered over processes: whoever knows one number reads on from it and misses nothing."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from drpo_graph import RunOptions, optimize, read_events, resume
from drpo_graph.errors import BudgetSpentError, CheckpointError, ModelCallError
from drpo_graph.events.schema import Event
from drpo_graph.models.request import Reply, Request
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from tests.support.command import enter, serve_world
from tests.support.oracle import Oracle, OracleTransport
from tests.support.searches import fake_settings, run_search
from tests.support.world import World

QUERIES = ["q one", "q two"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a search of 34 calls or so, whose budget ends in its middle."""
    with serve_world() as server:
        enter(tmp_path, monkeypatch, server)
        yield build_settings(
            {
                "model": "openai:world",
                "depth": 3,
                "n_actions": 2,
                "beam_size": 1,
                "queries_per_level": 2,
                "max_calls": 9,
            }
        )


async def collect(thread_id: str, since: int = 0, *, follow: bool = False) -> list[Event]:
    """Return a run's stored events."""
    return [event async for event in read_events(thread_id, since, follow=follow)]


def numbers(events: list[Event]) -> list[int]:
    """Return the events' numbers."""
    return [event.seq for event in events]


async def run_in_parts(settings: Settings, *, writes: tuple[bool, ...] = (True, True, True)) -> list[Event]:
    """Run a search that its budget stops, then resume it to its end, then ask for its result again; return what
    the sink was told."""
    told: list[Event] = []
    first, second, third = (RunOptions(sinks=(told.append,), writes_files=one) for one in writes)
    with pytest.raises(BudgetSpentError):
        await optimize(QUERIES, settings=settings, thread_id="t", options=first)
    await resume("t", options=second, changes={"max_calls": 900})
    await resume("t", options=third)
    return told


async def test_numbers_go_on_over_processes_and_sinks_are_told_the_same(settings: Settings) -> None:
    told = await run_in_parts(settings)
    assert numbers(told) == list(range(1, len(told) + 1))
    assert [one.type for one in told if one.type.startswith("run_")] == [
        "run_started",
        "run_stopped",
        "run_started",
        "run_finished",
        "run_finished",
    ]
    assert await collect("t") == told
    for since in (1, 17, len(told) - 1, len(told), len(told) + 5):
        assert await collect("t", since) == told[since:]
    assert await collect("t", 3, follow=True) == told[3:]


async def test_log_of_an_earlier_version_is_numbered_as_it_is_read_and_goes_on(settings: Settings) -> None:
    log = Path("drpo_runs/t/events.jsonl")
    with pytest.raises(BudgetSpentError):
        await optimize(QUERIES, settings=settings, thread_id="t")
    former = [json.loads(line) for line in log.read_text().splitlines()]
    # Two processes, each with numbers of its own, and half a line between them.
    half = len(former) // 2
    lines = [json.dumps({**one, "seq": place % half + 1}) for place, one in enumerate(former)]
    log.write_text("\n".join([*lines[:half], '{"type": "warn', *lines[half:]]) + "\n")
    await resume("t", changes={"max_calls": 900})
    found = numbers(await collect("t"))
    assert found[: len(former)] == list(range(1, len(former) + 1))
    assert all(first < second for first, second in pairwise(found))
    assert numbers(await collect("t", len(former) + 2)) == [one for one in found if one > len(former) + 2]


@pytest.mark.parametrize("writes", [(False, False, False), (False, True, True)], ids=["never", "later"])
async def test_numbers_do_not_repeat_where_a_process_kept_no_log(settings: Settings, writes: tuple[bool, ...]) -> None:
    found = numbers(await run_in_parts(settings, writes=writes))
    assert all(first < second for first, second in pairwise(found))
    with pytest.raises(CheckpointError, match="disable-log"):
        await collect("t")


async def test_log_that_was_taken_away_leaves_no_number_twice(settings: Settings) -> None:
    told: list[Event] = []
    options = RunOptions(sinks=(told.append,))
    with pytest.raises(BudgetSpentError):
        await optimize(QUERIES, settings=settings, thread_id="t", options=options)
    shutil.rmtree("drpo_runs/t")
    await resume("t", options=options, changes={"max_calls": 900})
    assert all(first < second for first, second in pairwise(numbers(told)))


@dataclass
class BreakingTransport(OracleTransport):
    """Refuses the key after so many calls."""

    num_good: int = 0
    oracle: Oracle = field(default_factory=lambda: Oracle(World(seed=3)))

    async def send(self, request: Request) -> Reply:
        """Return the oracle's reply, or raise."""
        reply = await super().send(request)
        if len(self.requests) > self.num_good:
            raise KeyRefusedError
        return reply


class KeyRefusedError(Exception):
    """What a client library raises for a wrong key."""

    status_code = 401


@pytest.mark.parametrize("num_good", [0, 1, 9])
async def test_numbers_of_a_graph_in_an_app_go_on_in_another_process(num_good: int) -> None:
    told: list[Event] = []
    settings, world = fake_settings(depth=3, beam_size=2, n_actions=3, queries_per_level=2), World(seed=3)
    saver, store = InMemorySaver(), InMemoryStore()
    for transport in (BreakingTransport(num_good=num_good), OracleTransport(Oracle(world))):
        run = run_search(
            settings,
            world,
            world.train_queries,
            checkpointer=saver,
            store=store,
            sinks=(told.append,),
            transport=transport,
        )
        if isinstance(transport, BreakingTransport):
            with pytest.raises(ModelCallError):
                await run
            former = len(told)
        else:
            await run
    found = numbers(told)
    assert found[:former] == list(range(1, former + 1))
    assert all(first < second for first, second in pairwise(found))
