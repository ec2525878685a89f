"""A model that refuses fields as gpt-5-mini does, wherever a model is asked: learnt once, told once, and gone on."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from langchain.agents import create_agent

from drpo_graph.agents import AlignmentMiddleware
from drpo_graph.events.schema import Event, Warned
from drpo_graph.icl import optimize_icl
from drpo_graph.inference import AlignedModel
from drpo_graph.records import ROLES
from drpo_graph.runs.work import RunOptions
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from tests.icl.test_loop import Steady, plans, write_plans
from tests.oirl.collection.script import answer, write_prompts, write_sums
from tests.support.command import KEY, Drpo, serve
from tests.support.fake_server import FakeServer, Reply, Responder, ServerOptions

GPT_5_MINI = ServerOptions(refuses=["temperature", "top_p", "stop", "max_tokens"], log_bodies=True)
NAMED = ("--model", "openai:gpt-5-mini", "--max-concurrency", "1", "--set", "probe=false")
STOPS = tuple(word for role in ROLES for word in ("--set", f'{role}.stop=["END"]'))
EVENTS = ("--display", "jsonl")


def settings() -> Settings:
    """Return settings of a model for all roles that is asked one thing after the other."""
    role = {"model": "openai:gpt-5-mini", "stop": ["END"]}
    return build_settings({**dict.fromkeys(ROLES, role), "max_concurrency": 1, "probe": False})


def warnings_of(events: list[Event]) -> list[str]:
    return [one.message for one in events if isinstance(one, Warned)]


def run_command(drpo: Drpo, *words: str) -> list[str]:
    """Run a command that makes a run, and return what it warns of."""
    done = drpo(*words, *NAMED, *STOPS, *EVENTS)
    assert done.code == 0, done.err
    return warnings_of(done.events())


def icl_command(drpo: Drpo) -> list[str]:
    write_plans("2,4")
    return run_command(drpo, "icl", "mine.json", "--num-iters", "1", "--thread-id", "t")


def icl_function(drpo: Drpo) -> list[str]:
    events: list[Event] = []
    options = RunOptions(checkpoint=Path("runs.sqlite"), sinks=(events.append,))
    asyncio.run(optimize_icl(plans("2,4"), settings=settings(), num_iters=1, thread_id="t", options=options))
    return warnings_of(events)


def collect(drpo: Drpo) -> list[str]:
    write_sums(Path("sums.jsonl"), 2)
    write_prompts(Path("prompts.jsonl"))
    return run_command(drpo, "oirl", "collect", "sums.jsonl", "--prompts", "prompts.jsonl", "--thread-id", "t")


def generate(drpo: Drpo) -> list[str]:
    done = drpo("generate", "Hello", *NAMED[:2], "--stop", "END", "--set", "probe=false")
    assert (done.code, done.out) == (0, "Good day.\n"), done.err
    return []


def aligned_model() -> AlignedModel:
    return AlignedModel(settings=settings(), model="openai:gpt-5-mini", system_prompt="Be kind.", stop=("END",))


def ask(drpo: Drpo) -> list[str]:
    model = aligned_model()
    assert [str(model.invoke("Hello").text).strip() for _ in range(2)] == ["Good day."] * 2
    return []


def stream(drpo: Drpo) -> list[str]:
    model = aligned_model()
    for _ in range(2):
        assert "".join(str(one.text) for one in model.stream("Hello")).strip() == "Good day."
    return []


def run_agent(drpo: Drpo) -> list[str]:
    middleware: Any = AlignmentMiddleware("Be kinder.")
    agent = create_agent(aligned_model(), middleware=[middleware])
    asked: Any = {"messages": [("user", "Hello")]}
    for _ in range(2):
        assert str(agent.invoke(asked)["messages"][-1].text).strip() == "Good day."
    return []


def say_good_day(body: dict[str, object]) -> Reply:
    return Reply(["Good day. END And more."])


class Surface(NamedTuple):
    """Where a model is asked: what does it, and what the server answers."""

    run: Callable[[Drpo], list[str]]
    """Returns what a run's events warn of; what has no run logs it."""
    responder: Callable[[], Responder]


SURFACES: Mapping[str, Surface] = {
    "drpo icl": Surface(icl_command, Steady),
    "optimize_icl": Surface(icl_function, Steady),
    "drpo oirl collect": Surface(collect, lambda: answer),
    "drpo generate": Surface(generate, lambda: say_good_day),
    "AlignedModel": Surface(ask, lambda: say_good_day),
    "AlignedModel, streamed": Surface(stream, lambda: say_good_day),
    "AlignmentMiddleware": Surface(run_agent, lambda: say_good_day),
}


@pytest.fixture(params=SURFACES)
def surface(request: pytest.FixtureRequest) -> Surface:
    return SURFACES[request.param]


@pytest.fixture
def server(surface: Surface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(surface.responder(), GPT_5_MINI) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


def test_what_a_model_refuses_is_learnt_once_told_once_and_left_out(
    surface: Surface, server: FakeServer, drpo: Drpo, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="drpo_graph"):
        told = surface.run(drpo) or [one.getMessage() for one in caplog.records]
    refused = [entry["body"] for entry in server.finished if entry["status"] == 400]
    taken = [entry["body"] for entry in server.finished if entry["status"] == 200]
    assert len(refused) == 3, json.dumps(refused)
    assert len(told) == 3, told
    for name, one in zip(("temperature", "top_p", "stop"), told, strict=True):
        assert f"'openai:gpt-5-mini' does not take every field: {name} is no longer sent" in one
    assert taken
    for body in taken:
        assert not {"temperature", "top_p", "stop", "max_tokens"} & set(body)
        assert body["max_completion_tokens"]
