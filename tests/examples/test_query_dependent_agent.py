"""The agent that learns which prompt suits which question, on a fake server and on the embedded model."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from aiohttp import web

from drpo_graph.agents import PromptSlot
from tests.examples.test_agents import load
from tests.support.command import KEY, serve
from tests.support.embeddings import serve_embeddings_beside
from tests.support.fake_server import Reply, Responder, ServerOptions

ARGUMENTS = ["--model", "openai:m", "--embeddings", "openai:e", "--num-then", "20"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("query_dependent_agent")


def vector_of(text: str) -> list[float]:
    """Return a vector that tells sums, capitals and the rest apart, as a real embedding does."""
    is_sum, is_capital = "+" in text, "capital" in text
    return [float(is_sum), float(is_capital), float(not is_sum and not is_capital), 0.1]


def embed(texts: list[str]) -> web.Response:
    entries = [{"object": "embedding", "index": place, "embedding": vector_of(one)} for place, one in enumerate(texts)]
    return web.json_response({"object": "list", "data": entries, "model": "e", "usage": {}})


def run(
    example: ModuleType, responder: Responder, folder: Path, monkeypatch: pytest.MonkeyPatch, *, num_first: int = 60
) -> int:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # Embeddings are the one thing that is asked of the usual server; the agent's model has a server of its own.
    with serve(responder, ServerOptions(api_key=KEY)) as server, serve_embeddings_beside() as embedder:
        embedder.answer = embed
        monkeypatch.setenv("OPENAI_BASE_URL", embedder.base_url)
        code: int = example.main(
            [*ARGUMENTS, "--num-first", str(num_first), "--base-url", server.base_url, "--folder", str(folder)]
        )
    return code


def answer(example: ModuleType, body: dict[str, object]) -> tuple[str, str]:
    """Return the name of the prompt that a request has, and the right short answer to its question."""
    messages = json.loads(json.dumps(body["messages"]))
    names = {text: name for name, text in example.PROMPT_BY_NAME.items()}
    question = str(messages[-1]["content"])
    numbers = [int(one) for one in re.findall(r"\d+", question)]
    country = next((one for one in example.CAPITALS if one in question), "")
    return names[messages[0]["content"]], str(sum(numbers)) if numbers else example.CAPITALS.get(country, "")


def test_each_question_gets_its_prompt_where_that_pays(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def respond(body: dict[str, object]) -> Reply:
        name, word = answer(example, body)
        return Reply([{"short": word or "Well.", "list": "1. Begin.", "plain": "Let us think about it."}[name]])

    assert run(example, respond, tmp_path / "agent", monkeypatch, num_first=240) == 0
    first, routed, single = re.split(r"\n(?=\S)", capsys.readouterr().out.strip())
    assert first.startswith("prompts in turn: ")
    assert routed.startswith("version 2, by the router: ")
    assert "abstained" not in routed
    right, alone = (int(re.findall(r": (\d+) of 20 right", one)[0]) for one in (routed, single))
    assert right > alone
    slot = PromptSlot(tmp_path / "agent" / "prompt.json")
    assert (slot.current.router, slot.current.text) == ("router.npz", example.PROMPT_BY_NAME["short"])
    assert {one.stat().st_mode & 0o777 for one in slot.path.parent.iterdir()} == {0o600}


def test_router_abstains_where_one_prompt_is_the_best_for_all(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def respond(body: dict[str, object]) -> Reply:
        name, word = answer(example, body)
        return Reply([(word or "1. Begin.") if name == "short" else "Let us think about it."])

    assert run(example, respond, tmp_path, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "version 2, by the router: 20 of 20 right\n  short: 20 of 20 right\n" in out
    assert "  abstained on 20 of 20 questions: " in out


def test_what_teaches_nothing_is_told_in_one_line(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(example, lambda body: Reply(["Hm."]), tmp_path, monkeypatch) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped: Every one of the 60 outcomes is 0")


def test_checker_wants_short_answers_or_a_list(example: ModuleType) -> None:
    fact, steps = example.Task("What is 2 + 3?", "5"), example.Task("How do I make tea?", None)
    assert fact.is_right("The answer is 5.")
    assert not fact.is_right("15")
    assert not fact.is_right("To add two and three we count on from two: 5.")
    assert steps.is_right("Like this:\n 1. Boil water.")
    assert not steps.is_right("Boil water.")


@pytest.mark.local
@pytest.mark.retrieval
@pytest.mark.timeout(900)
def test_it_learns_with_the_embedded_model(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "local:smollm2", "--num-first", "60", "--num-then", "8"]
    assert example.main([*arguments, "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "version 2, by the router: " in out
    assert "the best single prompt: " in out
