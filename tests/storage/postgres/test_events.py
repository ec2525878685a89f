"""Events in the database are numbered over processes as those in files are, and read on from any number."""

import asyncio
import json
from itertools import pairwise
from pathlib import Path

import pytest

from drpo_graph.events.schema import Event
from drpo_graph.runs.watching import read_events
from tests.support.command import SMALL, Drpo
from tests.support.postgres import query

START = ("optimize", *SMALL, "--thread-id", "t", "--max-calls", "9", "--display", "none")


def run_in_parts(drpo: Drpo, uri: str, *flags: str) -> None:
    """Run a search that its budget stops, then resume it to its end."""
    assert drpo(*START, *flags, "--checkpoint", uri).code == 3
    assert drpo("resume", "t", "--max-calls", "900", "--display", "none", "--checkpoint", uri).code == 0


@pytest.mark.parametrize("flags", [(), ("--disable-log",)], ids=["with files", "alone"])
def test_numbers_go_on_over_processes(drpo: Drpo, uri: str, flags: tuple[str, ...]) -> None:
    run_in_parts(drpo, uri, *flags)
    rows = query(uri, "SELECT position, event FROM drpo_events ORDER BY position")
    assert [position for position, _ in rows] == list(range(1, len(rows) + 1))
    assert [json.loads(event)["seq"] for _, event in rows] == list(range(1, len(rows) + 1))
    shown = drpo("events", "t", "--checkpoint", uri).out.splitlines()
    assert shown == [event for _, event in rows]
    assert drpo("events", "t", "--since", "17", "--checkpoint", uri).out.splitlines() == shown[17:]

    async def collect(since: int) -> list[Event]:
        return [event async for event in read_events("t", since, follow=True, checkpoint=uri)]

    assert [event.seq for event in asyncio.run(collect(30))] == list(range(31, len(rows) + 1))


def test_table_and_file_go_on_from_the_higher_number(drpo: Drpo, folder: Path, uri: str) -> None:
    assert drpo(*START, "--checkpoint", uri).code == 3
    query(uri, "DELETE FROM drpo_events WHERE position > 5 RETURNING 1")
    assert drpo("resume", "t", "--max-calls", "900", "--display", "none", "--checkpoint", uri).code == 0
    logged = [json.loads(line)["seq"] for line in (folder / "drpo_runs/t/events.jsonl").read_text().splitlines()]
    assert logged == list(range(1, len(logged) + 1))
    told = [json.loads(event)["seq"] for (event,) in query(uri, "SELECT event FROM drpo_events ORDER BY position")]
    assert told[5] > 6
    assert all(first < second for first, second in pairwise(told))


def test_events_of_an_earlier_version_are_numbered_by_their_place(drpo: Drpo, uri: str) -> None:
    assert drpo(*START, "--checkpoint", uri, "--disable-log").code == 3
    (number,) = query(uri, "SELECT count(*) FROM drpo_events")[0]
    half = number // 2
    # Two processes, each with numbers of its own.
    restarted = f"regexp_replace(event, '\"seq\":[0-9]+', '\"seq\":' || ((position - 1) % {half} + 1))"
    query(uri, f"UPDATE drpo_events SET event = {restarted} RETURNING 1")
    assert drpo("resume", "t", "--max-calls", "900", "--display", "none", "--checkpoint", uri).code == 0
    for since in (0, half + 2, number + 3):
        shown = drpo("events", "t", "--since", str(since), "--checkpoint", uri).events()
        assert [event.seq for event in shown] == list(range(since + 1, since + 1 + len(shown)))
        assert shown[-1].type == "run_finished"
