"""What a person, or a person's code, may hand over and should not: told in one line, or taken as it is meant."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drpo_graph import Parts, Query, Reward, RunOptions, build_graph, optimize
from drpo_graph.cli.app import _run
from drpo_graph.errors import RewardError, SettingsError
from drpo_graph.icl import build_icl_graph
from tests.conformance.graphs import EXAMPLES, INITIAL_PROMPT, QUERIES, make_settings, serve_models

HALF = "half \ud800 of it"


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serve_models() as url:
        yield url


class Responder:
    """Answers with half of a character."""

    async def respond(self, prompt: str, query: Query) -> str:
        return HALF


class Rewriter:
    """Writes half of a character."""

    async def rewrite(self, request: Any, *, models: Any) -> list[str]:
        return [f"{INITIAL_PROMPT} {HALF}"]


def reward_with_half(query: Query, response: str) -> Reward:
    return Reward(score=3, feedback=HALF)


@pytest.mark.parametrize("parts", [{"responder": Responder()}, {"rewriter": Rewriter()}, {"critic": reward_with_half}])
async def test_half_of_a_character_from_a_part_is_left_out(parts: Any, base_url: str, tmp_path: Path) -> None:
    settings = make_settings(base_url)
    output = await build_graph(settings, **parts).ainvoke({"queries": QUERIES})
    assert output["result"]["status"] == "done"
    options = RunOptions(checkpoint=tmp_path / "runs.sqlite")
    result = await optimize(QUERIES, settings=settings, options=options, parts=Parts(**parts))
    assert result.status == "done"


async def _exit(query: Query, response: str) -> Reward:
    raise SystemExit(3)


async def _cancel(query: Query, response: str) -> Reward:
    raise asyncio.CancelledError


class _MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("in str")


async def _fail(query: Query, response: str) -> Reward:
    raise _MuteError


@pytest.mark.parametrize("reward", [_exit, _cancel, _fail])
async def test_whatever_a_reward_function_raises_is_told_as_its_own(reward: Any, base_url: str) -> None:
    with pytest.raises(RewardError, match=rf"The reward function '{reward.__name__}' failed on query"):
        await build_graph(make_settings(base_url), critic=reward).ainvoke({"queries": QUERIES})


@pytest.mark.parametrize("prompt", [5, ["a"], HALF])
async def test_a_prompt_that_is_no_text_is_refused(prompt: Any, base_url: str) -> None:
    with pytest.raises(SettingsError, match=r"initial_prompt: expected a text"):
        await build_graph(make_settings(base_url)).ainvoke({"queries": QUERIES, "initial_prompt": prompt})


@pytest.mark.parametrize("context", [5, "depth", [1]])
async def test_a_context_that_holds_no_settings_is_refused(context: Any, base_url: str) -> None:
    graph: Any = build_graph(make_settings(base_url))
    with pytest.raises(SettingsError, match=r"The context is .*: expected settings by name"):
        await graph.ainvoke({"queries": QUERIES}, context=context)


async def test_settings_that_are_no_text_are_refused(base_url: str) -> None:
    with pytest.raises(SettingsError, match=r"initial_prompt: it is no UTF-8 text"):
        await build_graph(make_settings(base_url).model_copy(update={"initial_prompt": HALF})).ainvoke(
            {"queries": QUERIES}
        )


async def test_icl_graph_has_the_defaults_of_a_run(base_url: str) -> None:
    graph: Any = build_icl_graph(make_settings(base_url))
    output = await graph.ainvoke({"examples": EXAMPLES})
    assert output["result"]["status"] == "done"
    with pytest.raises(SettingsError, match="num_iters and num_samples"):
        await graph.ainvoke({"examples": EXAMPLES, "num_iters": 0})


@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_argument_that_is_no_text_is_told(place: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["show", "t", "--checkpoint", "x.sqlite"]
    arguments[place] = os.fsdecode(b"a\xff")
    assert _run(arguments, is_debug=False) == 2
    assert f"Argument {place + 1} is no UTF-8 text" in capsys.readouterr().err
