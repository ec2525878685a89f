"""A wall clock that jumps while a run is at work changes nothing of it: how long things take is told by another one."""

import time
from pathlib import Path

import pytest

from drpo_graph.records import RunResult
from drpo_graph.runs.runner import RunOptions, optimize, resume
from drpo_graph.settings.layers import build_settings
from tests.support.command import KEY, serve
from tests.support.fake_server import ServerOptions
from tests.support.oracle import build_responder


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
async def test_a_run_ends_the_same_when_the_clock_jumps(
    jump_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_time, num_asked = time.time, 0

    def jumping_time() -> float:
        nonlocal num_asked
        num_asked += 1
        # To and fro, and at first not at all.
        return true_time() + (jump_s if num_asked % 20 >= 10 else 0.0)

    with serve(build_responder(seed=3), ServerOptions(models=["world"], api_key=KEY)) as world:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", world.base_url)
        roles = {f"{role}_model": "openai:world" for role in ("base", "metrics", "critic", "optimizer")}
        settings = build_settings({**roles, "depth": 3, "n_actions": 2, "beam_size": 1, "queries_per_level": 2})

        async def run(name: str) -> RunResult:
            options = RunOptions(checkpoint=tmp_path / name / "runs.sqlite")
            result = await optimize(settings=settings, thread_id="t", options=options)
            assert await resume("t", options=options) == result
            return result

        steady = await run("steady")
        monkeypatch.setattr(time, "time", jumping_time)
        assert await run("jumping") == steady
    assert num_asked > 20
