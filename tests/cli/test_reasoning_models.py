"""Sampling that is unset, and thinking that is counted, shown, and told where it leaves no reply: by every command."""

import json
from pathlib import Path

import pytest

from drpo_graph.display.formatting import format_count
from drpo_graph.events.schema import Warned
from drpo_graph.records import ROLES
from tests.icl.test_loop import Steady, write_plans
from tests.oirl.collection.script import answer, write_prompts, write_sums
from tests.support.command import KEY, Drpo, serve
from tests.support.fake_server import Reply, Responder, ServerOptions
from tests.support.oracle import build_responder

MODEL = ("--model", "openai:gpt-5-mini", "--set", "probe=false")
ICL = ("icl", "mine.json", "--num-iters", "1", "--thread-id", "t", *MODEL)
COLLECT = ("oirl", "collect", "sums.jsonl", "--prompts", "prompts.jsonl", "--thread-id", "t", *MODEL)
SEARCH = ("optimize", "--depth", "2", "--n-actions", "1", "--beam-size", "1", "--thread-id", "t", *MODEL)
GENERATE = ("generate", "Hello", *MODEL)


def say(body: dict[str, object]) -> Reply:
    return Reply(["Good day."])


EFFORT_NONE = tuple(word for role in ROLES for word in ("--set", f"{role}.reasoning_effort=none"))

RESPONDERS: dict[tuple[str, ...], Responder] = {
    ICL: Steady(),
    COLLECT: answer,
    SEARCH: build_responder(seed=3),
    GENERATE: say,
}


@pytest.fixture(autouse=True)
def inputs(folder: Path) -> None:
    write_plans("2,4")
    write_sums(Path("sums.jsonl"), 2)
    write_prompts(Path("prompts.jsonl"))
    Path("unset.toml").write_text('[critic]\ntemperature = "none"\ntop_p = "none"\n')
    Path("all.toml").write_text('[base]\ntemperature = "none"\ntop_p = "none"\n')


def role_of(body: dict[str, object]) -> str:
    """Return whose request it is, by what only its prompt says."""
    text = json.dumps(body["messages"])
    if "# Metrics to choose from" in text:
        return "metrics"
    return "optimizer" if "new_response" in text else "critic" if "- Clarity:" in text else "base"


@pytest.mark.parametrize(
    ("command", "flags", "unset"),
    [
        (GENERATE, ("--temperature", "none", "--top-p", "none"), {"base": {"temperature", "top_p"}}),
        (GENERATE, ("--set", "base.top_p=none"), {"base": {"top_p"}}),
        (COLLECT, ("--config", "all.toml"), {"base": {"temperature", "top_p"}}),
        (COLLECT, ("--temperature", "none", "--top-p", "NONE"), {"base": {"temperature", "top_p"}}),
        (
            ICL,
            ("--config", "unset.toml", "--temperature", "none", "--set", "metrics.top_p=none"),
            {"critic": {"temperature", "top_p"}, "optimizer": {"temperature"}, "metrics": {"top_p"}},
        ),
    ],
)
def test_sampling_that_is_unset_is_not_sent(
    command: tuple[str, ...],
    flags: tuple[str, ...],
    unset: dict[str, set[str]],
    drpo: Drpo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve(RESPONDERS[command], ServerOptions(log_bodies=True)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        done = drpo(*command, *flags)
    assert done.code == 0, done.err
    left_out: dict[str, set[str]] = {}
    for entry in server.finished:
        body = entry["body"]
        left_out.setdefault(role_of(body), set()).update({"temperature", "top_p"} - set(body))
    assert {role: names for role, names in left_out.items() if names} == unset


@pytest.mark.parametrize("command", [ICL, COLLECT, SEARCH], ids=lambda command: command[0])
def test_thinking_is_counted_in_the_result_and_shown(
    command: tuple[str, ...], drpo: Drpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(RESPONDERS[command], ServerOptions(api_key=KEY, num_reasoning_tokens=100)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        done = drpo(*command, "--display", "none")
    assert done.code == 0, done.err
    usage = json.loads(Path("drpo_runs/t/result.json").read_text())["usage_by_role"]
    assert all(one["reasoning_tokens"] == 100 * one["calls"] > 0 for one in usage.values())
    shown = drpo("show", "t").out.splitlines()
    (heading,) = [number for number, line in enumerate(shown) if line.startswith("cost ")]
    assert " ".join(shown[heading].split()) == "cost calls tokens in out cached of it reasoning money"
    num_calls = sum(one["calls"] for one in usage.values())
    assert format_count(100 * num_calls) in shown[heading + len(usage) + 1].split()


@pytest.mark.parametrize("command", [ICL, COLLECT], ids=lambda command: command[0])
def test_thinking_that_leaves_no_reply_is_told_once_for_each_model(
    command: tuple[str, ...], drpo: Drpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(RESPONDERS[command], ServerOptions(api_key=KEY, num_reasoning_tokens=9000)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        done = drpo(*command, "--display", "jsonl")
    messages = [one.message for one in done.events() if isinstance(one, Warned)]
    told = [one for one in messages if "model 'openai:gpt-5-mini': the reply is empty: reasoning took all" in one]
    assert len(told) == 1, messages
    assert "max_tokens, or lower" in told[0]


def test_response_that_thinking_left_empty_is_an_error_with_what_helps(
    drpo: Drpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(say, ServerOptions(num_reasoning_tokens=9000)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        done = drpo(*GENERATE)
    assert done.code == 1
    assert "reasoning took all of its tokens (4,096). Raise base.max_tokens, or lower base.reasoning_effort" in done.err


@pytest.mark.parametrize("command", [ICL, COLLECT, SEARCH], ids=lambda command: command[0])
def test_estimate_says_what_it_assumes_of_thinking(command: tuple[str, ...], drpo: Drpo) -> None:
    shape = [one for one in command if one not in ("--thread-id", "t")]
    assumed = "Models that reason: openai:gpt-5-mini. Of their tokens out"
    thinking, silent = drpo(*shape, "--dry-run"), drpo(*shape, "--dry-run", *EFFORT_NONE)
    assert (thinking.code, silent.code) == (0, 0), (thinking.err, silent.err)
    assert assumed in thinking.out
    assert assumed not in silent.out
