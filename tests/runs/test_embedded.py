"""Runs inside a graph of an app, held by ``embedded_run``: kept, listed, drained and told of."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command

from drpo_graph import RunOptions, build_graph, embedded_run, fork, optimize, pending_review, resume
from drpo_graph.errors import ModelCallError, RunExistsError, RunInterruptedError, RunLockedError, UsageError
from drpo_graph.events.schema import Event, ICLStarted, RunStarted, RunStopped, parse_event
from drpo_graph.runs.decisions import decide
from drpo_graph.runs.reading import find_run, list_runs
from drpo_graph.safety.encryption import KEY_VARIABLE
from drpo_graph.storage.places import DEFAULT_CHECKPOINT
from drpo_graph.storage.run_list import RunRegistry
from drpo_graph.storage.sqlite_file import SqliteStorage
from tests.conformance.graphs import CASES, QUERIES, ParentInput, ParentState, found_in, make_settings
from tests.icl.test_loop import Steady
from tests.support.command import Drpo, finished_keys, serve
from tests.support.fake_server import FakeServer, Latency, Reply, ServerOptions
from tests.support.oracle import build_responder


class Eventful:
    """Answers as the models do; something happens at one request."""

    def __init__(self) -> None:
        self.num_left = -1
        self.act: Callable[[], Reply | None] = lambda: None
        self._world, self._steady = build_responder(seed=3), Steady()

    def __call__(self, body: dict[str, object]) -> Reply:
        """Return the next reply."""
        self.num_left -= 1
        acted = self.act() if self.num_left == 0 else None
        return acted or (self._steady if " plan " in str(body) else self._world)(body)

    def at(self, num_calls: int, act: Callable[[], Reply | None]) -> None:
        """Do something at a request, counted from now."""
        self.num_left, self.act = num_calls, act


@pytest.fixture
def models() -> Eventful:
    return Eventful()


@pytest.fixture
def server(models: Eventful, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.chdir(tmp_path)
    with serve(models, ServerOptions(latency=Latency(0.003, sigma=0.5))) as running:
        yield running


class Night:
    """An app's graph, run as often as it takes, each time as a new process would."""

    def __init__(self, build: Callable[[Any, Any], Any], settings: Any, given: Any, checkpoint: Any = None) -> None:
        self.events: list[Event] = []
        self.streamed: list[Event] = []
        self._build, self._settings, self._given = build, settings, given
        place = {} if checkpoint is None else {"checkpoint": checkpoint}
        self._how: Any = {"sinks": (self.events.append,), **place}

    async def work(self, given: Any = None, **how: Any) -> Any:
        """Run, or go on, and return the graph's last values."""
        self.events.clear()
        self.streamed.clear()
        async with embedded_run("night", options=RunOptions(**self._how, **how)) as run:
            graph = self._build(self._settings, {"checkpointer": run.checkpointer, "store": run.store})
            start = given if given is not None or run.has_begun else self._given
            async for _, told in graph.astream(start, run.config, stream_mode="custom", subgraphs=True):
                self.streamed.append(parse_event(told))
            return (await graph.aget_state(run.config)).values

    def __call__(self, given: Any = None, **how: Any) -> Any:
        """Do so on an event loop of its own."""
        return asyncio.run(self.work(given, **how))


def list_embedded(drpo: Drpo, *place: str) -> list[dict[str, Any]]:
    runs = json.loads(drpo("runs", "--json", *place).out)
    assert all(run["embedded_in"] == "night" for run in runs)
    return sorted(runs, key=lambda run: run["created_at"])


def cancel_at(models: Eventful, num_calls: int, night: Night) -> None:
    """Cancel the work in the middle, while calls are under way, and see that none is lost."""

    async def work() -> None:
        task = asyncio.ensure_future(night.work())
        loop = asyncio.get_running_loop()
        models.at(num_calls, lambda: loop.call_soon_threadsafe(task.cancel) and None)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())


def build_twice(settings: Any, how: Any) -> Any:
    """Return a graph with two searches: a node, and one that is called twice."""
    search = build_graph(settings)

    async def again(state: ParentState) -> ParentState:
        await search.ainvoke({"queries": QUERIES[:1]})
        return await search.ainvoke({"queries": QUERIES[1:2]})

    graph = StateGraph(ParentState, input_schema=ParentInput)
    graph.add_node("optimise", search)
    graph.add_node("again", again)
    graph.add_edge(START, "optimise")
    graph.add_edge("optimise", "again")
    graph.add_edge("again", END)
    return graph.compile(**how)


@pytest.mark.parametrize("name", ["search", "calling parent", "ICL"])
def test_a_run_in_a_graph_is_listed_shown_and_has_events(name: str, server: FakeServer, drpo: Drpo) -> None:
    night = Night(CASES[name].build, make_settings(server.base_url), CASES[name].given)
    assert found_in(night())
    (run,) = list_embedded(drpo)
    assert (run["status"], run["kind"]) == ("done", "icl" if name == "ICL" else "search")
    assert run["thread_id"].startswith("night")
    shown = drpo("show", run["thread_id"])
    assert shown.code == 0
    assert "runs in night" in shown.out
    told = drpo("events", run["thread_id"]).events()
    assert told == night.events == night.streamed
    assert told[-1].type in ("run_finished", "icl_finished")
    assert (Path(run["log_dir"]) / "log.txt").is_file()


@pytest.mark.parametrize(
    ("name", "num_calls"), [("search", 5), ("parent", 9), ("calling parent", 1), ("grandparent", 7), ("ICL", 3)]
)
def test_a_cancelled_graph_loses_no_call_and_tells_that_it_goes_on(
    name: str, num_calls: int, server: FakeServer, models: Eventful, drpo: Drpo
) -> None:
    settings = make_settings(server.base_url, depth=3)
    unbroken = Night(CASES[name].build, settings, CASES[name].given, "unbroken.sqlite")()
    before = len(server.log)
    night = Night(CASES[name].build, settings, CASES[name].given)
    cancel_at(models, num_calls, night)
    # Each request was answered, and its answer heard.
    started = [one for one in server.log[before:] if one["event"] != "end"]
    assert len(started) == len(server.log[before:]) / 2
    stopped = night.events[-1]
    assert isinstance(stopped, RunStopped)
    assert stopped.reason == "interrupted"
    (run,) = list_embedded(drpo)
    assert (run["status"], "cancelled" in run["message"]) == ("interrupted", True)
    assert "night" in drpo("show", run["thread_id"]).out
    assert found_in(night()) == found_in(unbroken)
    keys = [one["key"] for one in server.log[before:] if one["event"] == "end"]
    assert len(keys) == len(set(keys)) == len({one["key"] for one in server.log[:before]})
    first = night.events[0]
    assert isinstance(first, RunStarted | ICLStarted)
    assert first.is_resumed
    assert night.streamed[0] == first
    assert sum(one.type == first.type for one in night.events) == 1
    (again,) = list_embedded(drpo)
    assert (again["status"], again["created_at"]) == ("done", run["created_at"])


def test_a_second_cancel_stops_at_once(server: FakeServer, models: Eventful, drpo: Drpo) -> None:
    night = Night(CASES["parent"].build, make_settings(server.base_url), CASES["parent"].given)
    server.options = ServerOptions(latency=Latency(60))

    async def work() -> None:
        task = asyncio.ensure_future(night.work())
        async with asyncio.timeout(20):
            while not server.log:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.sleep(0.1)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())
    (run,) = list_embedded(drpo)
    assert run["status"] == "interrupted"


def test_each_search_of_a_graph_is_a_run(server: FakeServer, models: Eventful, drpo: Drpo) -> None:
    settings, given = make_settings(server.base_url), {"queries": QUERIES}
    Night(build_twice, settings, given, "unbroken.sqlite")()
    num_calls = len(server.log) // 2
    night = Night(build_twice, settings, given)
    cancel_at(models, num_calls - 3, night)
    statuses = [run["status"] for run in list_embedded(drpo)]
    assert statuses[0] == "done"
    assert "interrupted" in statuses
    night()
    runs = list_embedded(drpo)
    assert [run["status"] for run in runs] == ["done"] * 3
    assert len({run["thread_id"] for run in runs}) == 3
    assert len(server.log) == 4 * num_calls
    for run in runs:
        assert {event.run_id for event in drpo("events", run["thread_id"]).events()} == {run["thread_id"]}


def test_why_a_run_has_failed_is_told(server: FakeServer, models: Eventful, drpo: Drpo) -> None:
    night = Night(CASES["parent"].build, make_settings(server.base_url), CASES["parent"].given)
    models.at(4, lambda: Reply(status=401, error_message="Incorrect API key provided."))
    with pytest.raises(ModelCallError):
        night()
    (run,) = list_embedded(drpo)
    assert (run["status"], "API key" in run["message"]) == ("failed", True)
    night()
    assert [run["status"] for run in list_embedded(drpo)] == ["done"]


def test_a_run_that_waits_is_answered_in_its_graph_and_nowhere_else(server: FakeServer, drpo: Drpo) -> None:
    settings = make_settings(server.base_url, approve=True)
    night = Night(CASES["parent"].build, settings, CASES["parent"].given)
    night()
    (run,) = list_embedded(drpo)
    name = run["thread_id"]
    assert run["status"] == "waiting"
    refusals = [drpo("resume", name), drpo("review", name), drpo("fork", name, "--level", "0")]
    for refused in refusals:
        assert refused.code == 2
        (line,) = refused.err_lines
        assert "invokes its thread 'night' again" in line
    calls: list[Any] = [
        resume(name),
        fork(name, level=0),
        pending_review(name),
        decide(name, {"author": "Ada"}),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="night"):
            asyncio.run(call)
    assert "needs it" in drpo("prune", name, "--keep", "nothing", "--yes").out
    while "result" not in night(Command(resume={"author": "Ada"})):
        pass
    assert [run["status"] for run in list_embedded(drpo)] == ["done"]
    assert drpo("prune", name, "--keep", "nothing", "--yes").code == 0
    assert list_embedded(drpo) == []


async def test_one_process_holds_a_thread(server: FakeServer) -> None:
    async with embedded_run("night"):
        with pytest.raises(RunLockedError):
            async with embedded_run("night"):
                pytest.fail("it is held twice")


async def test_a_name_is_either_a_run_or_a_graph_of_an_app(server: FakeServer) -> None:
    await optimize(QUERIES, settings=make_settings(server.base_url), thread_id="night")
    with pytest.raises(RunExistsError, match="Take another name"):
        async with embedded_run("night"):
            pytest.fail("two graphs share a thread")


@pytest.mark.parametrize("is_idle", [False, True])
def test_a_signal_ends_what_is_under_way(
    is_idle: bool, server: FakeServer, models: Eventful, drpo: Drpo, tmp_path: Path
) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    async def idle() -> None:
        async with embedded_run("night", options=RunOptions(handles_signals=True)):
            interrupt()
            await asyncio.Event().wait()

    night = Night(CASES["parent"].build, make_settings(server.base_url), CASES["parent"].given)
    models.at(5, interrupt)
    with pytest.raises(RunInterruptedError, match="Stopped on request"):
        asyncio.run(idle()) if is_idle else night(handles_signals=True)
    if not is_idle:
        assert [run["status"] for run in list_embedded(drpo)] == ["interrupted"]
        night()
        keys = finished_keys(server)
        assert len(keys) == len(set(keys))


async def test_a_stream_that_is_not_read_on_loses_no_call(server: FakeServer) -> None:
    settings = make_settings(server.base_url, depth=3)
    events: list[Event] = []
    for is_last in (False, True):
        async with embedded_run("night", options=RunOptions(sinks=(events.append,))) as run:
            graph = CASES["parent"].build(settings, {"checkpointer": run.checkpointer, "store": run.store})
            start = None if run.has_begun else CASES["parent"].given
            async for _, told in graph.astream(start, run.config, stream_mode="custom", subgraphs=True):
                if told["type"] == "rollout_scored" and not is_last:
                    break
        # Each request was answered before the block was left.
        assert len(server.log) == 2 * len(server.finished)
    assert events[-1].type == "run_finished"
    keys = finished_keys(server)
    assert len(keys) == len(set(keys))


async def test_the_list_shows_whether_the_graph_s_thread_is_held(server: FakeServer) -> None:
    settings = make_settings(server.base_url, approve=True)
    storage = SqliteStorage(DEFAULT_CHECKPOINT)
    async with embedded_run("night") as run:
        graph = CASES["parent"].build(settings, {"checkpointer": run.checkpointer, "store": run.store})
        assert "__interrupt__" in await graph.ainvoke(CASES["parent"].given, run.config)
        (record,) = await list_runs(storage)
        assert record.status == "running"
    (record,) = await list_runs(storage)
    assert record.status == "waiting"
    # As a process leaves it that is killed.
    async with storage.open_run("night") as checkpoint:
        await RunRegistry(checkpoint.store).save(record.model_copy(update={"status": "running"}))
    assert (await find_run(storage, record.thread_id)).status == "interrupted"


def test_files_of_an_encrypted_place_are_sealed(
    server: FakeServer, drpo: Drpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "5e" * 32)
    night = Night(CASES["parent"].build, make_settings(server.base_url), CASES["parent"].given)
    night()
    (run,) = list_embedded(drpo)
    assert [one.name for one in Path(run["log_dir"]).iterdir()] == ["events.jsonl.sealed"]
    assert drpo("events", run["thread_id"]).events() == night.events


def test_runs_of_a_graph_have_folders_in_the_one_that_is_named(server: FakeServer, drpo: Drpo, tmp_path: Path) -> None:
    night = Night(build_twice, make_settings(server.base_url), {"queries": QUERIES})
    night(log_dir=tmp_path / "logs")
    assert {run["log_dir"] for run in list_embedded(drpo)} == {str(one) for one in (tmp_path / "logs").iterdir()}
    quiet = Night(
        CASES["parent"].build, make_settings(server.base_url), CASES["parent"].given, tmp_path / "quiet.sqlite"
    )
    quiet(writes_files=False)
    (run,) = list_embedded(drpo, "--checkpoint", str(tmp_path / "quiet.sqlite"))
    assert run["log_dir"] is None


def test_events_are_numbered_on_where_their_log_ends_and_time_does_not_go_back(
    server: FakeServer, models: Eventful, drpo: Drpo
) -> None:
    night = Night(CASES["parent"].build, make_settings(server.base_url, depth=3), CASES["parent"].given)
    cancel_at(models, 6, night)
    night()
    (run,) = list_embedded(drpo)
    told = drpo("events", run["thread_id"]).events()
    assert [one.seq for one in told] == list(range(1, len(told) + 1))
    stopped = next(place for place, one in enumerate(told) if one.type == "run_stopped")
    times = [one.elapsed_s for one in told[: stopped + 1]]
    assert times == sorted(times)
    assert times[-1] > 0


def test_files_stay_where_the_block_was_entered(server: FakeServer, drpo: Drpo, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def build(settings: Any, how: Any) -> Any:
        async def wander(state: ParentState) -> ParentState:
            os.chdir(elsewhere)
            return {"queries": state["queries"]}

        graph = StateGraph(ParentState, input_schema=ParentInput)
        graph.add_node("wander", wander)
        graph.add_node("optimise", build_graph(settings))
        graph.add_edge(START, "wander")
        graph.add_edge("wander", "optimise")
        graph.add_edge("optimise", END)
        return graph.compile(**how)

    night = Night(build, make_settings(server.base_url), CASES["parent"].given)
    night()
    os.chdir(tmp_path)
    (run,) = list_embedded(drpo)
    assert drpo("events", run["thread_id"]).events() == night.events
    assert list(elsewhere.iterdir()) == []


def test_what_fails_beside_a_search_is_no_failure_of_the_search(
    server: FakeServer, models: Eventful, drpo: Drpo
) -> None:
    def build(settings: Any, how: Any) -> Any:
        has_begun = asyncio.Event()
        models.at(6, lambda: has_begun.set())

        async def fail(state: ParentState) -> ParentState:
            while not has_begun.is_set():
                await asyncio.sleep(0.001)
            raise ValueError("the app's own")

        graph = StateGraph(ParentState, input_schema=ParentInput)
        graph.add_node("optimise", build_graph(settings))
        graph.add_node("fail", fail)
        for name in ("optimise", "fail"):
            graph.add_edge(START, name)
            graph.add_edge(name, END)
        return graph.compile(**how)

    for _ in range(3):
        night = Night(build, make_settings(server.base_url, depth=3), CASES["parent"].given, f"{_}.sqlite")
        with pytest.raises(ValueError, match="the app's own"):
            night()
        (run,) = list_embedded(drpo, "--checkpoint", f"{_}.sqlite")
        assert run["status"] == "interrupted"
        assert "the app's own" in run["message"]
