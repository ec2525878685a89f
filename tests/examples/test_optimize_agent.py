"""The agent that is optimised on its own traces, on a scripted model that calls tools and on a fake server."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from langchain_core.messages import AIMessage, BaseMessage

from drpo_graph.records import Query
from tests.agents.agents import ScriptedAgentModel, call_tool
from tests.examples.test_agents import load
from tests.support.command import KEY, serve
from tests.support.fake_server import FakeServer, Reply, ServerOptions
from tests.support.scripted_app import ScriptedApp, scripted_settings

BETTER = "Look up what is in stock before you tell a price."


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("optimize_agent")


@pytest.fixture
def optimizer() -> ScriptedApp:
    return ScriptedApp([BETTER])


@pytest.fixture
def server(optimizer: ScriptedApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(optimizer, ServerOptions()) as server:
        yield server


def sell(messages: Sequence[BaseMessage]) -> AIMessage:
    """Look up the price, and the stock where the prompt says so; then tell the sum."""
    system, question, *steps = messages
    number, item = question.text.split()[2], question.text.split("'")[1]
    tools = ["find_price", "count_stock"] if "stock" in system.text else ["find_price"]
    found = [one.text for one in steps if one.type == "tool"]
    if len(found) < len(tools):
        return call_tool(tools[len(found)], item=item)
    if len(found) > 1 and int(found[1]) < int(number):
        return AIMessage(f"There are only {found[1]} in stock.")
    return AIMessage(f"That is {int(number) * int(found[0])} euros.")


async def test_prompt_is_optimised_on_what_the_agent_does(
    example: ModuleType, server: FakeServer, optimizer: ScriptedApp, tmp_path: Path
) -> None:
    settings = scripted_settings(
        server.base_url, initial_prompt=example.INITIAL_PROMPT, queries_per_level=12, pool_size=12
    )
    result = await example.improve(settings, ScriptedAgentModel(script=sell), folder=tmp_path)
    assert result.system_prompt == BETTER
    assert result.validation.is_significant
    # No answer of the model's own, only what the optimizer wrote; and that has seen the steps, and what was missing.
    assert optimizer.asked == []
    shown = optimizer.optimizer_requests[0]
    assert '[tool call] find_price\n> {"item": "lamp"}\n\n[tool result] find_price\n> 30\n\n[answer]\nThat is ' in shown
    assert "it did not look up with count_stock" in shown


@pytest.mark.parametrize(
    ("tags", "response", "score", "told"),
    [
        (("lamp", "2"), "[tool call] count_stock\n> {}\n\n[answer]\nIt is 60 euros.", 5, "right"),
        (("lamp", "2"), "It is 60 euros.", 3, "did not look up"),
        (("lamp", "2"), "[tool call] count_stock\n> 60\n\n[answer]\nIt is 160.", 3, "the right sum is 60"),
        (("rug", "1"), "[tool call] count_stock\n> {}\n\n[no answer]", 3, "only 0 are in stock"),
        (("rug", "1"), "75", 1, "did not look up"),
    ],
)
async def test_reward_looks_at_answer_and_steps(
    example: ModuleType, tags: tuple[str, str], response: str, score: float, told: str
) -> None:
    reward = await example.reward_order(Query(id="q", text="?", tags=tags), response)
    assert reward.score == score
    assert told in reward.feedback


def test_it_runs_from_the_command_line(
    example: ModuleType, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--base-url", server.base_url, "--folder", str(tmp_path), "--depth", "2"]
    assert example.main(["--model", "openai:m", *arguments]) == 0
    assert capsys.readouterr().out.startswith("prompt: ")
    assert example.main(["--model", "m", *arguments]) == 1
    assert capsys.readouterr().err.startswith("stopped: ")


def test_agent_that_cannot_answer_ends_the_search_in_one_line(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda body: Reply(status=401, error_message="no"), ServerOptions()) as server:
        arguments = ["--model", "openai:m", "--base-url", server.base_url, "--folder", str(tmp_path)]
        assert example.main(arguments) == 1
    assert capsys.readouterr().err.startswith("stopped: ")
