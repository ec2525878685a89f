"""What a person, or a person's code, may hand over and should not: told in one line, or taken as it is meant."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from drpo_graph import Parts, Query, Reward, RunOptions, build_graph, optimize, resume
from drpo_graph.cli.app import _run
from drpo_graph.errors import PartError, RewardError, SearchStalledError, SettingsError, UsageError
from drpo_graph.events.schema import Event
from drpo_graph.icl import build_icl_graph
from drpo_graph.runs.reading import list_runs
from drpo_graph.runs.work import RunWork
from drpo_graph.storage.sqlite_file import SqliteStorage
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


async def _fail_at_length(query: Query, response: str) -> Reward:
    raise ValueError("x" * 1_000_000)


async def _boundless(query: Query, response: str) -> int:
    return 10**400


async def test_a_reward_beyond_all_numbers_is_none(base_url: str) -> None:
    with pytest.raises(SearchStalledError, match=r"expected 1 to 5|expected a Reward or a number"):
        await build_graph(make_settings(base_url), critic=_boundless).ainvoke({"queries": QUERIES})


async def _listen(event: Event) -> None:
    raise AssertionError(event)


async def test_a_sink_that_would_never_run_is_refused(base_url: str, tmp_path: Path) -> None:
    options = RunOptions(checkpoint=tmp_path / "runs.sqlite", sinks=(_listen,))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="event sink _listen is asynchronous"):
        await optimize(QUERIES, settings=make_settings(base_url), options=options)


@pytest.mark.parametrize("setting", ["depth", "max_depth_increase", "beam_size", "n_actions"])
async def test_a_caller_cannot_ask_for_a_plan_without_end(setting: str, base_url: str) -> None:
    graph: Any = build_graph(make_settings(base_url, max_calls=60))
    with pytest.raises(SettingsError, match=setting):
        await graph.ainvoke({"queries": QUERIES}, context={setting: 10**9})


@pytest.mark.parametrize("reward", [_exit, _cancel, _fail, _fail_at_length])
async def test_whatever_a_reward_function_raises_is_told_as_its_own(reward: Any, base_url: str) -> None:
    with pytest.raises(RewardError, match=rf"The reward function '{reward.__name__}' failed on query") as caught:
        await build_graph(make_settings(base_url), critic=reward).ainvoke({"queries": QUERIES})
    assert len(str(caught.value)) < 3_000


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


@pytest.mark.parametrize("place", [5, None, b"runs.sqlite", {"path": "x"}])
async def test_a_checkpoint_that_is_no_place_is_refused(place: Any, base_url: str) -> None:
    with pytest.raises(UsageError, match=r"checkpoint: expected the path of a SQLite file"):
        await optimize(QUERIES, settings=make_settings(base_url), options=RunOptions(checkpoint=place))


@pytest.mark.filterwarnings("ignore:This API is in beta")
async def test_a_misspelt_argument_of_the_tool_is_refused(base_url: str) -> None:
    tool = build_graph(make_settings(base_url)).as_tool(name="optimise", description="Optimises.")
    with pytest.raises(ValidationError, match="depht"):
        await tool.ainvoke({"queries": QUERIES, "depht": 3})


class _Ledge:
    """A sink that fails at one kind of event."""

    def __call__(self, event: Event) -> None:
        if event.type == "level_finished":
            raise ValueError("no room")


async def test_an_event_sink_that_fails_stops_the_run_by_its_name(base_url: str, tmp_path: Path) -> None:
    settings, place = make_settings(base_url), SqliteStorage(tmp_path / "runs.sqlite")
    with pytest.raises(
        PartError, match=r"The event sink _Ledge failed at 'level_finished': ValueError: no room\. Mend"
    ):
        await optimize(
            QUERIES, settings=settings, options=RunOptions(checkpoint=place, sinks=(_Ledge(),)), thread_id="t"
        )
    assert [(run.status, "no room" in run.message) for run in await list_runs(place)] == [("failed", True)]
    result = await resume("t", options=RunOptions(checkpoint=place))
    assert result.status == "done"


async def test_the_list_tells_of_an_end_that_nobody_foresaw(
    base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, place = make_settings(base_url), SqliteStorage(tmp_path / "runs.sqlite")

    async def fail(*_given: object) -> None:
        raise ZeroDivisionError("nobody foresaw it")

    with monkeypatch.context() as patch:
        patch.setattr(RunWork, "_work", fail)
        with pytest.raises(ZeroDivisionError):
            await optimize(QUERIES, settings=settings, options=RunOptions(checkpoint=place), thread_id="t")
    (run,) = await list_runs(place)
    assert (run.status, run.message) == ("failed", "ZeroDivisionError: nobody foresaw it")
    assert (await resume("t", options=RunOptions(checkpoint=place))).status == "done"


async def test_files_stay_in_one_folder_wherever_the_user_s_code_goes(
    base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    async def wander(query: Query, response: str) -> float:
        os.chdir(elsewhere)
        return 3

    await optimize(QUERIES, settings=make_settings(base_url), parts=Parts(critic=wander), thread_id="t")
    assert {"best_prompt.txt", "events.jsonl", "result.json"} <= {
        one.name for one in (tmp_path / "drpo_runs" / "t").iterdir()
    }
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_argument_that_is_no_text_is_told(place: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["show", "t", "--checkpoint", "x.sqlite"]
    arguments[place] = os.fsdecode(b"a\xff")
    assert _run(arguments, is_debug=False) == 2
    assert f"Argument {place + 1} is no UTF-8 text" in capsys.readouterr().err
