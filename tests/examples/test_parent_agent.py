"""The parent app of ``examples/parent_agent.py``: it sees our events, gets the prompt, and goes on after a failure."""

import asyncio
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drpo_graph.errors import ModelCallError
from drpo_graph.events.schema import CallFinished, Event, LevelFinished, RunFinished, RunStarted
from drpo_graph.records import ROLES
from tests.examples.test_agents import SMALL
from tests.support.command import finished_keys, serve
from tests.support.fake_server import FakeServer, Latency, Reply, ServerOptions
from tests.support.oracle import build_responder

ROOT = Path(__file__).resolve().parents[2]
MODEL = "openai:world"


class Breakable:
    """The synthetic world, which refuses one call; those that are under way at that moment are still answered."""

    def __init__(self) -> None:
        self.respond = build_responder(seed=3)
        self.calls_left: int | None = None

    def __call__(self, body: dict[str, object]) -> Reply:
        """Return the world's reply, or 401."""
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left == -1:
                return Reply(status=401, error_message="Incorrect API key provided.")
        return self.respond(body)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parent_agent", ROOT / "examples" / "parent_agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    with serve(Breakable(), ServerOptions(models=["world"], latency=Latency(0.03, sigma=0.7))) as server:
        yield server


@pytest.fixture
def run(example: ModuleType, world: FakeServer, tmp_path: Path) -> Callable[..., tuple[Any, list[Event]]]:
    """Run the agent as a process would, on an event loop of its own, and return its state and the events it saw."""

    def start(name: str, **settings: Any) -> tuple[Any, list[Event]]:
        events: list[Event] = []
        roles = {role: {"model": MODEL, "base_url": world.base_url} for role in ROLES}
        state = asyncio.run(
            example.run_agent(
                example.build_settings({"depth": 3, "n_actions": 2, "queries_per_level": 2, **roles, **settings}),
                "night",
                checkpoint_file=tmp_path / f"{name}.sqlite",
                prompt_file=tmp_path / f"{name}.txt",
                show=events.append,
            )
        )
        return state, events

    return start


def test_parent_sees_our_events_and_holds_the_prompt(run: Callable[..., Any], tmp_path: Path) -> None:
    state, events = run("whole")
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)
    assert [event.level for event in events if isinstance(event, LevelFinished)] == [0, 1, 2]
    assert state["system_prompt"] == events[-1].result.system_prompt
    assert state["reward"] == events[-1].result.reward
    assert len(state["training_queries"]) == 3
    assert (tmp_path / "whole.txt").read_text() == f"{state['system_prompt']}\n"
    # The search's own channels stay with the search.
    assert set(state) == {"training_queries", "system_prompt", "reward", "deployed_to"}


@pytest.mark.parametrize("num_calls", [3, 9, 17])
def test_parent_resumes_after_a_failure_without_repeating_finished_calls(
    num_calls: int, run: Callable[..., Any], world: FakeServer
) -> None:
    unbroken, _ = run("whole")
    breakable = world.responder
    assert isinstance(breakable, Breakable)
    before = len(finished_keys(world))
    breakable.calls_left = num_calls
    with pytest.raises(ModelCallError, match="API key"):
        run("broken")
    num_paid = len(finished_keys(world)) - before
    assert num_calls <= num_paid < before
    resumed, events = run("broken")
    keys = finished_keys(world)[before:]
    assert len(keys) == len(set(keys))
    assert sorted(keys) == sorted(finished_keys(world)[:before])
    assert {**resumed, "deployed_to": ""} == {**unbroken, "deployed_to": ""}
    num_new = sum(isinstance(event, CallFinished) and not event.from_ledger for event in events)
    assert num_new == len(keys) - num_paid


def test_finished_agent_makes_no_further_call(run: Callable[..., Any], world: FakeServer) -> None:
    first, _ = run("whole")
    num_calls = len(finished_keys(world))
    again, events = run("whole")
    assert (again, events) == (first, [])
    assert len(finished_keys(world)) == num_calls


def test_command_line_prints_events_and_says_how_to_go_on(
    example: ModuleType, world: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--model", MODEL, "--base-url", world.base_url, "--depth", "2"]
    files = ["--checkpoint", str(tmp_path / "a.sqlite"), "--prompt-file", str(tmp_path / "p.txt")]
    assert isinstance(world.responder, Breakable)
    world.responder.calls_left = 5
    assert example.main([*place, *files]) == 1
    assert "Run the same command again" in capsys.readouterr().err
    assert example.main([*place, *files]) == 0
    assert "deployed to" in capsys.readouterr().out
    assert (tmp_path / "p.txt").read_text().strip()


@pytest.mark.local
@pytest.mark.timeout(600)
def test_a_night_is_worked_with_the_embedded_model(example: ModuleType, tmp_path: Path) -> None:
    events: list[Event] = []
    state = asyncio.run(
        example.run_agent(
            example.build_settings({"model": "local:smollm2", **SMALL, "max_time": None}),
            "night",
            checkpoint_file=tmp_path / "a.sqlite",
            prompt_file=tmp_path / "p.txt",
            show=events.append,
        )
    )
    assert isinstance(events[-1], RunFinished)
    assert (tmp_path / "p.txt").read_text() == f"{state['system_prompt']}\n"
