"""The checkable task of ``examples/json_task.py``: on a fake server, where it must succeed, and on a real model."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from drpo_graph.records import Query
from tests.support.command import serve
from tests.support.fake_server import Reply, ServerOptions
from tests.support.oracle import role_of

ROOT = Path(__file__).resolve().parents[2]
BETTER = "Answer with one JSON object, with exactly the keys that the request lists."
_SUCCESS = r"held-out success {}: (\d\.\d\d) \[(\d\.\d\d), (\d\.\d\d)\]"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("json_task", ROOT / "examples" / "json_task.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def respond(body: dict[str, object]) -> Reply:
    """Answer in prose, or, under the better prompt, with the keys asked for."""
    messages = body["messages"]
    assert isinstance(messages, list)
    if role_of(messages) == "optimizer":
        return Reply([json.dumps({"analysis": "prose", "new_system_prompt": BETTER})])
    keys = messages[-1]["content"].split("with the keys ")[1].rstrip(".").split(", ")
    return Reply([json.dumps(dict.fromkeys(keys, "x")) if messages[0]["content"] == BETTER else "It is nice."])


def measured(text: str, name: str) -> list[float]:
    found = re.search(_SUCCESS.format(name), text)
    assert found is not None, text
    return [float(one) for one in found.groups()]


def test_gain_on_unseen_requests_is_measured_and_a_finished_search_is_not_made_again(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    with serve(respond, ServerOptions()) as server:
        arguments = ["--model", "openai:m", "--base-url", server.base_url, "--folder", str(tmp_path), "--depth", "2"]
        assert example.main(arguments) == 0
        num_calls, out = len(server.finished), capsys.readouterr().out
        assert example.main(arguments) == 0
        assert capsys.readouterr().out == out
        assert len(server.finished) - num_calls == 2 * example.NUM_HELD_OUT
    assert measured(out, "before") == [0, 0, 0]
    assert measured(out, "after") == [1, 1, 1]
    assert "difference: 1.00 [1.00, 1.00]" in out


def test_requests_of_search_and_measurement_share_nothing(example: ModuleType) -> None:
    train = example.make_requests("train", number=18, seed=0)
    test = example.make_requests("test", number=24, seed=0)
    choice = example.make_requests("choice", number=18, seed=0)
    assert (len(train), len(choice), len(test)) == (18, 12, 24)
    assert len({query.text for query in [*train, *choice, *test]}) == 54


@pytest.mark.parametrize(
    ("response", "score", "is_right"),
    [
        ('{"name": "a", "use": "b"}', 5.0, True),
        ('Here: {"name": "a", "use": "b"}', 5.0, True),
        ('{"name": "a", "use": "b", "more": 1}', 4.5, True),
        ('{"name": "a"}', 4.0, False),
        ("a, b", 1.0, False),
    ],
)
async def test_reward_counts_keys(example: ModuleType, response: str, score: float, is_right: bool) -> None:
    query = Query(id="q", text="?", tags=("name", "use"))
    assert (await example.reward_json(query, response)).score == score
    assert example.is_right(query, response) is is_right


def test_failed_run_is_told_in_one_line(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    with serve(lambda body: Reply(status=401, error_message="no"), ServerOptions()) as server:
        arguments = ["--model", "openai:m", "--base-url", server.base_url, "--folder", str(tmp_path)]
        assert example.main(arguments) == 1
    assert capsys.readouterr().err.startswith("stopped: ")


@pytest.mark.local
@pytest.mark.timeout(600)
def test_task_runs_on_the_embedded_model(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.main(["--model", "local:smollm2", "--folder", str(tmp_path), "--depth", "2"]) == 0
    out = capsys.readouterr().out
    for name in ("before", "after"):
        share, low, high = measured(out, name)
        assert 0 <= low <= share <= high <= 1
