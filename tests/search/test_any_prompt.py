"""A prompt that is a template, through the whole search: filled for the model, kept by rewrites, checked at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.errors import DatasetError, SettingsError
from drpo_graph.events.schema import Warned
from drpo_graph.parts.protocols import Reward, RewriteRequest
from drpo_graph.prompts import load_prompts
from drpo_graph.records import Query, RunResult
from drpo_graph.runs.runner import RunOptions, optimize
from drpo_graph.search.assembly import Parts
from tests.support.command import serve
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.scripted_app import ScriptedApp, scripted_settings

PROMPT = "Help {user} politely."
QUERIES = [Query(id="a", text="Why?", values={"user": "Ann"}), Query(id="b", text="How?", values={"user": "{user}"})]
GOOD = "Help {user} politely and at length."


async def by_length(query: Query, response: str) -> Reward:
    return Reward(score=min(4.0, 1 + len(response) / 20), feedback="Longer is better.")


@pytest.fixture
def app() -> ScriptedApp:
    return ScriptedApp([GOOD])


@pytest.fixture
def server(app: ScriptedApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    with serve(app, ServerOptions()) as server:
        yield server


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(checkpoint=tmp_path / "c.sqlite", writes_files=False)


async def search(
    server: FakeServer, options: RunOptions, queries: list[Query] | None = None, **values: object
) -> RunResult:
    fields = {"initial_prompt": PROMPT, "placeholders": "format", **values}
    parts = Parts(critic=by_length)
    settings = scripted_settings(server.base_url, **fields)
    return await optimize(queries or QUERIES, settings=settings, options=options, parts=parts, thread_id="t")


async def test_model_is_told_the_filled_prompt_and_the_result_is_the_template(
    server: FakeServer, app: ScriptedApp, options: RunOptions
) -> None:
    result = await search(server, options, queries_per_level=2)
    assert result.system_prompt == GOOD
    assert set(app.asked) <= {text.replace("{user}", one) for text in (PROMPT, GOOD) for one in ("Ann", "{user}")}
    assert any("Ann" in one for one in app.asked)


async def test_rewrite_that_loses_a_placeholder_is_asked_for_again_then_repaired(
    server: FakeServer, app: ScriptedApp, options: RunOptions
) -> None:
    app.rewrites = ["Help Ann.", "Help Ann.", "Help {name}.", GOOD]
    result = await search(server, options)
    assert result.system_prompt == GOOD
    assert "missing: {user}; not in the original: {name}" in app.optimizer_requests[3]
    assert result.unusable_by_kind == {"placeholders": 3}
    assert not any(one.startswith("Help Ann.") or "{name}" in one for one in app.asked)


async def test_prompt_that_is_quoted_costs_no_evaluation(
    server: FakeServer, app: ScriptedApp, options: RunOptions
) -> None:
    text = "Which of the two brothers was it who built the long bridge over the river at Dresden?"
    query = Query(id="a", text=text, values={"user": "Ann"})
    app.rewrites = [f"{GOOD} {text}"] * 4
    result = await search(server, options, [query])
    assert result.system_prompt == PROMPT
    assert result.unusable_by_kind == {"quoted": 4}
    assert result.failures_by_kind == {"quoted": 1}
    assert not any(text in one for one in app.asked)


async def test_optimizer_is_told_what_to_keep(server: FakeServer, app: ScriptedApp, options: RunOptions) -> None:
    await search(server, options)
    assert app.optimizer_requests[0].rstrip().endswith("- {user}")


async def test_search_without_placeholders_asks_as_before(
    server: FakeServer, app: ScriptedApp, options: RunOptions
) -> None:
    result = await search(server, options, placeholders="none")
    assert set(app.asked) <= {PROMPT, GOOD}
    assert "program puts texts" not in app.optimizer_requests[0]
    assert result.fingerprints["prompts"] == load_prompts().fingerprint
    assert load_prompts(has_placeholders=True).fingerprint != load_prompts().fingerprint


async def test_missing_value_is_an_error_before_anything_is_asked(
    server: FakeServer, app: ScriptedApp, options: RunOptions
) -> None:
    with pytest.raises(DatasetError, match="query 'c': user"):
        await search(server, options, [*QUERIES, Query(id="c", text="Who?")])
    with pytest.raises(SettingsError, match="has none like"):
        await search(server, options, initial_prompt="Be kind.")
    assert app.asked == []
    assert not Path(str(options.checkpoint)).exists()


async def test_rewrites_of_another_rewriter_are_checked_too(
    server: FakeServer, app: ScriptedApp, options: RunOptions
) -> None:
    class Careless:
        async def rewrite(self, request: RewriteRequest, *, models: object) -> list[str]:
            return ["Help.", GOOD]

    told: list[object] = []
    settings = scripted_settings(server.base_url, initial_prompt=PROMPT, placeholders="format")
    result = await optimize(
        QUERIES,
        settings=settings,
        options=RunOptions(checkpoint=options.checkpoint, writes_files=False, sinks=(told.append,)),
        parts=Parts(critic=by_length, rewriter=Careless()),
    )
    assert result.system_prompt == GOOD
    assert any(isinstance(one, Warned) and "missing: {user}" in one.message for one in told)
    assert "Help." not in app.asked
