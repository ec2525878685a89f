"""Runs inside a graph of an app that is kept in PostgreSQL."""

from pathlib import Path

from tests.conformance.graphs import make_settings
from tests.runs.test_embedded import QUERIES, Eventful, Night, build_twice, cancel_at, list_embedded
from tests.support.command import Drpo, finished_keys, serve
from tests.support.fake_server import Latency, ServerOptions


def test_searches_of_a_graph_are_runs_with_events_of_their_own(uri: str, folder: Path, drpo: Drpo) -> None:
    models, place = Eventful(), ("--checkpoint", uri)
    with serve(models, ServerOptions(latency=Latency(0.003, sigma=0.5))) as server:
        settings, given = make_settings(server.base_url), {"queries": QUERIES}
        Night(build_twice, settings, given, folder / "unbroken.sqlite")()
        num_calls = len(finished_keys(server))
        night = Night(build_twice, settings, given, uri)
        cancel_at(models, num_calls // 2, night)
        assert {run["status"] for run in list_embedded(drpo, *place)} >= {"interrupted"}
        night()
        assert len(finished_keys(server)) == 2 * num_calls
    runs = list_embedded(drpo, *place)
    assert [run["status"] for run in runs] == ["done"] * 3
    for run in runs:
        events = drpo("events", run["thread_id"], *place).events()
        assert {event.run_id for event in events} == {run["thread_id"]}
        assert (events[0].type, events[-1].type) == ("run_started", "run_finished")
        assert drpo("show", run["thread_id"], *place).code == 0
        assert drpo("prune", run["thread_id"], "--keep", "nothing", "--yes", *place).code == 0
    assert list_embedded(drpo, *place) == []
