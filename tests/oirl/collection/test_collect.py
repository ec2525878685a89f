"""The collection of demonstrations, against a scripted server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.events.schema import CollectionFinished, CollectionStarted, Event, TrialFinished
from drpo_graph.oirl.collection import collect_demonstrations
from drpo_graph.oirl.tables import load_demonstrations
from tests.oirl.collection.script import PROMPTS, answer, expected_outcome, options_in, settings_for, sums
from tests.support.command import serve
from tests.support.fake_server import FakeServer, ServerOptions


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serve(answer, ServerOptions(log_bodies=True)) as running:
        yield running


async def test_every_prompt_is_tried_on_every_query(server: FakeServer, tmp_path: Path) -> None:
    events: list[Event] = []
    result = await collect_demonstrations(
        sums(5), PROMPTS, settings=settings_for(server), thread_id="t", options=options_in(tmp_path, events)
    )
    expected = {(n, level): expected_outcome(n, level) for n in range(5) for level in range(3)}
    table = load_demonstrations(tmp_path / "t/demonstrations.jsonl")
    rows = list(table)
    assert len(rows) == 15
    assert [row.outcome for row in rows] == list(expected.values())
    assert {row.model for row in rows} == {"openai:scripted"}
    assert all(row.tokens is not None and row.tokens > 5 for row in rows)
    assert [one.mean_outcome for one in result.prompts] == [
        sum(expected[n, level] for n in range(5)) / 5 for level in range(3)
    ]
    assert isinstance(events[0], CollectionStarted)
    assert sum(isinstance(one, TrialFinished) for one in events) == 15
    assert isinstance(events[-1], CollectionFinished)
    assert result.usage_by_role["base"].calls == 15
