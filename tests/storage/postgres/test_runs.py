"""A run on PostgreSQL is the run that it is on SQLite: same result, same crash semantics, same commands."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from drpo_graph.cli.execution import check_is_new
from drpo_graph.errors import NoRunsError, SearchStalledError
from drpo_graph.runs.reading import list_runs as read_runs
from drpo_graph.storage.postgres import PostgresStorage
from tests.support.command import (
    KEY,
    SMALL,
    Drpo,
    assert_one_line,
    finish,
    finished_keys,
    list_runs,
    spawn_drpo,
    wait_for,
)
from tests.support.fake_server import FakeServer
from tests.support.mending import Bench, Mood, count_calls, critic_is_bad
from tests.support.postgres import dump, query, wait_for_rows

CALLS = "SELECT key FROM store WHERE prefix = 'drpo.t.calls'"
START = ("optimize", *SMALL, "--thread-id", "t")
RESULTS = (
    "result.json",
    "best_prompt.txt",
    "algo_output/tree.json",
    "algo_output/output.json",
    "algo_output/output.pkl",
)


def assert_same(run: Path, unbroken: Path) -> None:
    """The results are the same bytes."""
    for name in RESULTS:
        assert (run / name).read_bytes() == (unbroken / name).read_bytes(), name


def stored_events(uri: str) -> list[str]:
    return [event for (event,) in query(uri, "SELECT event FROM drpo_events ORDER BY position")]


def test_results_are_those_of_sqlite_byte_for_byte(drpo: Drpo, folder: Path, uri: str, unbroken: Path) -> None:
    assert drpo(*START, "--display", "none", "--checkpoint", uri).code == 0
    assert_same(folder / "drpo_runs" / "t", unbroken)
    assert stored_events(uri) == (folder / "drpo_runs" / "t" / "events.jsonl").read_text().splitlines()
    assert query(uri, "SELECT * FROM drpo_leases") == []
    assert {path.name for path in folder.rglob("*.sqlite*")} == set()


def test_a_run_is_exported_with_its_events_and_pruned_without_its_folder(drpo: Drpo, folder: Path, uri: str) -> None:
    place = ("--checkpoint", uri)
    assert drpo(*START, "--display", "none", "--disable-log", *place).code == 0
    events = stored_events(uri)
    outcome = drpo("export", "t", "--output", "out", *place)
    assert f"{len(events)} events" in outcome.out
    assert (folder / "out" / "t" / "events.jsonl").read_text().splitlines() == events
    by_age = ("prune", "t", "--keep", "nothing", "--older-than", "1d", "--yes", *place)
    query(
        uri,
        "UPDATE store SET value = jsonb_build_object('json', jsonb_set(jsonb_set((value->>'json')::jsonb - 'drpo_sum', "
        "'{updated_at}', '1'), '{status}', '\"running\"')::text) WHERE prefix = 'drpo.runs'",
    )
    assert "t: is not old enough" in drpo(*by_age).out
    query(uri, "UPDATE store SET updated_at = '2020-01-01' WHERE prefix <> 'drpo.runs'")
    query(uri, """UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{ts}', '"2020-01-01T00:00:00+00:00"')""")
    assert "1 run pruned" in drpo(*by_age).out
    assert [table for table, rows in dump(uri).items() if rows] == []


def test_a_finished_run_shows_its_result_again(drpo: Drpo, uri: str, world: FakeServer) -> None:
    place = ("--checkpoint", uri)
    assert drpo(*START, "--display", "none", *place).code == 0
    num_calls = len(world.log)
    outcome = drpo("resume", "t", "--display", "plain", *place)
    assert outcome.code == 0
    assert f"--checkpoint '{uri}'" in outcome.out
    assert len(world.log) == num_calls
    assert_one_line(drpo(*START, "--display", "none", *place), 2, "exists already", "drpo resume t")


@pytest.mark.slow
@pytest.mark.parametrize("num_calls", [1, 9, 20])
def test_a_run_killed_with_sigkill_resumes_and_ends_as_if_unbroken(
    num_calls: int,
    drpo: Drpo,
    folder: Path,
    uri: str,
    slow_world: FakeServer,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = len(finished_keys(slow_world))
    environment = {"OPENAI_BASE_URL": slow_world.base_url, "OPENAI_API_KEY": KEY}
    run = spawn_drpo(*START, "--display", "none", "--checkpoint", uri, folder=folder, environment=environment)
    wait_for(lambda: len(finished_keys(slow_world)) - before >= num_calls)
    run.kill()
    run.communicate()
    committed = {key for (key,) in query(uri, CALLS)}
    # Its process is on this machine, and known to be gone: nobody waits for its lease to end.
    assert list_runs(drpo, "--checkpoint", uri) == {"t": "interrupted"}
    asked = len(slow_world.log)
    monkeypatch.setenv("OPENAI_BASE_URL", slow_world.base_url)
    assert drpo("resume", "t", "--display", "none", "--checkpoint", uri).code == 0
    assert_same(folder / "drpo_runs" / "t", unbroken)
    # Not one committed call is made again.
    num_made = sum(entry["event"] == "start" for entry in slow_world.log[asked:])
    assert num_made <= len(query(uri, CALLS)) - len(committed)
    events = [json.loads(line) for line in stored_events(uri)]
    made = [event["key"] for event in events if event["type"] == "call_finished" and not event["from_ledger"]]
    assert len(made) == len(set(made))


@pytest.mark.slow
def test_ctrl_c_stores_the_calls_in_flight_and_says_how_to_go_on(
    drpo: Drpo, folder: Path, uri: str, slow_world: FakeServer, unbroken: Path
) -> None:
    before = len(slow_world.log)
    environment = {"OPENAI_BASE_URL": slow_world.base_url, "OPENAI_API_KEY": KEY}
    run = spawn_drpo(*START, "--display", "plain", "--checkpoint", uri, folder=folder, environment=environment)
    wait_for(lambda: len(slow_world.log) - before >= 12)
    run.send_signal(signal.SIGINT)
    outcome = finish(run)
    assert outcome.code == 130
    assert f"drpo resume t --checkpoint '{uri}'" in outcome.out
    log = slow_world.log[before:]
    assert sum(entry["event"] == "start" for entry in log) == sum(entry.get("status") == 200 for entry in log)
    assert json.loads(stored_events(uri)[-1])["type"] == "run_stopped"
    assert list_runs(drpo, "--checkpoint", uri) == {"t": "interrupted"}
    assert drpo("resume", "t", "--display", "none", "--checkpoint", uri).code == 0
    assert_same(folder / "drpo_runs" / "t", unbroken)


@pytest.mark.slow
def test_a_run_is_looked_at_and_followed_from_another_machine(
    drpo: Drpo, folder: Path, uri: str, slow_world: FakeServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environment = {"OPENAI_BASE_URL": slow_world.base_url, "OPENAI_API_KEY": KEY}
    place = ("--checkpoint", uri)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    run = spawn_drpo(*START, "--disable-log", "--display", "none", *place, folder=elsewhere, environment=environment)
    wait_for_rows(uri, "SELECT 1 FROM pg_tables WHERE tablename = 'drpo_events'")
    wait_for_rows(uri, "SELECT 1 FROM drpo_events WHERE event LIKE '%level_finished%'")
    follower = spawn_drpo(
        "events", "t", "--follow", "--display", "plain", *place, folder=folder, environment=environment
    )
    assert list_runs(drpo, *place) == {"t": "running"}
    shown = json.loads(drpo("show", "t", "--json", *place).out)
    assert (shown["run"]["status"], shown["result"]) == ("running", None)
    assert f"drpo events t --checkpoint '{uri}' --follow" in drpo("show", "t", *place).out
    refused = drpo("resume", "t", "--display", "none", *place)
    assert_one_line(refused, 1, "being worked on by process", "drpo events t --follow")
    assert finish(run).code == 0
    followed = finish(follower)
    assert (followed.code, followed.err) == (0, "")
    assert followed.out.startswith("started  t")
    assert "\ndone  t" in followed.out
    assert drpo("events", "t", "--display", "plain", *place).out == followed.out
    assert list_runs(drpo, *place) == {"t": "done"}
    # Neither the run nor those who looked at it left a file.
    assert not list(folder.iterdir())
    assert not list(elsewhere.iterdir())


def test_a_new_database_is_known_to_hold_no_run_of_a_name(uri: str) -> None:
    storage = PostgresStorage(uri)
    # Asked before a model server is started for a run: it returns, and leaves the database as it is.
    check_is_new(storage, "t")
    with pytest.raises(NoRunsError):
        asyncio.run(read_runs(storage))


def test_an_empty_database_holds_no_runs_and_stays_empty(drpo: Drpo, uri: str) -> None:
    for command in (("runs",), ("show", "t"), ("events", "t"), ("resume", "t", "--display", "none")):
        assert_one_line(drpo(*command, "--checkpoint", uri), 1, "holds no runs of drpo", "--checkpoint")
    assert query(uri, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []


def test_a_database_that_cannot_be_reached_is_told_at_once(drpo: Drpo, folder: Path, uri: str) -> None:
    nowhere = f"postgresql://someone@/runs?host={folder}"
    for command in (("runs",), (*START, "--display", "none"), ("resume", "t", "--display", "none")):
        assert_one_line(drpo(*command, "--checkpoint", nowhere), 1, nowhere, "Check the database")
    missing = uri.replace("runs_", "missing_")
    assert_one_line(drpo("runs", "--checkpoint", missing), 1, "does not exist")
    assert not list(folder.iterdir())


async def test_failed_samples_are_asked_again_as_on_sqlite(folder: Path, uri: str) -> None:
    found = []
    for name, checkpoint in (("sqlite", None), ("postgres", uri)):
        mood = Mood(critic_is_bad)
        async with FakeServer(mood) as server:
            bench = Bench(folder / name, mood, server, checkpoint=checkpoint)
            with pytest.raises(SearchStalledError):
                await bench.start()
            with pytest.raises(SearchStalledError):
                await bench.mend(rule=critic_is_bad)
            found.append(await bench.mend())
        assert count_calls(found[-1]) == mood.num_answered
    assert found[0] == found[1]
