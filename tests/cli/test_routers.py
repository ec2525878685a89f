"""``drpo generate`` with a router, given or registered, and ``drpo import`` and ``drpo prompts`` of one."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from drpo_graph.registry import PromptRegistry
from tests.cli.test_generate import MODEL, OWN, last_messages
from tests.support.choosers import BEST, FORBIDDEN, PROMPT_BY_QUERY, FakeChooser, RouterReader, write_router
from tests.support.command import KEY, Drpo, assert_one_line, serve
from tests.support.fake_server import FakeServer, Reply, ServerOptions

CHOSEN, BRACES, OTHER = "3 + 3?", "What is rain?", "Why?"


@pytest.fixture
def speaker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that says what the test wants, and keeps the requests."""
    with serve(lambda body: Reply(["Six."]), ServerOptions(api_key=KEY, log_bodies=True)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        yield server


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> RouterReader:
    """Reads the small files of these tests in the place of reward models."""
    reader, module = RouterReader(), ModuleType("drpo_graph.oirl.router")

    class PromptRouter:
        @staticmethod
        def load(path: Path, *, base_url: str | None = None) -> FakeChooser:
            reader.base_urls.append(base_url)
            return reader(path)

    def read_parts(path: Path) -> SimpleNamespace:
        return SimpleNamespace(prompts=[SimpleNamespace(text=reader(path).best_prompt)])

    module.PromptRouter = PromptRouter  # type: ignore[attr-defined]
    module.find_best_prompt = lambda parts: 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("drpo_graph.oirl.router_file.read_router", read_parts)
    return reader


@pytest.fixture
def router(folder: Path) -> Path:
    return write_router(folder / "r.npz")


@pytest.mark.parametrize("query", [CHOSEN, BRACES, OTHER])
def test_router_s_prompt_is_used_and_told(drpo: Drpo, speaker: FakeServer, router: Path, query: str) -> None:
    assert drpo("generate", query, *MODEL, "--router", router).out == "Six.\n"
    told = json.loads(drpo("generate", query, *MODEL, "--router", router, "--json").out)
    expected = PROMPT_BY_QUERY.get(query, BEST)
    assert [one["messages"][0]["content"] for one in sent(speaker)] == [expected] * 2
    assert (told["system_prompt"], told["system_prompt_source"]) == (expected, "router r")
    choice = told["system_prompt_choice"]
    assert choice["has_abstained"] == (query == OTHER)
    assert (choice["name"], choice["reward"]) == (("best", 0.5) if query == OTHER else ("special", 0.75))


@pytest.mark.parametrize("is_kept", [False, True])
def test_address_of_a_router_s_embeddings_needs_no_icl_example(
    drpo: Drpo, speaker: FakeServer, router: Path, reader: RouterReader, is_kept: bool
) -> None:
    if is_kept:
        assert drpo("import", router, *MODEL, "--registry", "kept").code == 0
    place = ("--registry", "kept") if is_kept else ("--router", router)
    answered = drpo("generate", CHOSEN, *MODEL, *place, "--embeddings-base-url", "http://127.0.0.1:9/v1")
    assert answered.out == "Six.\n", answered.err
    assert reader.base_urls == ["http://127.0.0.1:9/v1"]


def test_address_of_embeddings_that_nothing_asks_is_refused(drpo: Drpo, speaker: FakeServer) -> None:
    told = drpo("generate", CHOSEN, *MODEL, *OWN, "--embeddings-base-url", "http://127.0.0.1:9/v1")
    assert_one_line(told, 2, "--embeddings-base-url", "--num-icl")


def sent(server: FakeServer) -> list[dict[str, list[dict[str, object]]]]:
    return [entry["body"] for entry in server.log if entry["event"] == "start"]


def test_choice_is_made_once(drpo: Drpo, speaker: FakeServer, router: Path, reader: RouterReader) -> None:
    assert drpo("generate", CHOSEN, *MODEL, "--router", router, "--json").code == 0
    assert reader.asked == [CHOSEN]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_failed_choice_is_one_line(drpo: Drpo, speaker: FakeServer, router: Path, form: list[str]) -> None:
    assert_one_line(drpo("generate", FORBIDDEN, *MODEL, "--router", router, *form), 2, "cannot be embedded")
    assert not speaker.log


def test_json_of_a_fixed_prompt_tells_of_no_choice(drpo: Drpo, speaker: FakeServer) -> None:
    assert "system_prompt_choice" not in json.loads(drpo("generate", CHOSEN, *MODEL, *OWN, "--json").out)


def test_other_prompts_exclude_a_router(drpo: Drpo, router: Path) -> None:
    for flag in ("--system-prompt", "--run", "--prompt"):
        told = drpo("generate", "x", *MODEL, "--router", router, flag, "t")
        assert_one_line(told, 2, flag, "--router", "one system prompt")


def test_file_that_is_no_router_is_one_line(drpo: Drpo, speaker: FakeServer, router: Path) -> None:
    router.write_text("{")
    assert_one_line(drpo("generate", "x", *MODEL, "--router", router), 2, "r.npz", "it is none")
    assert_one_line(drpo("generate", "x", *MODEL, "--router", "none.npz"), 2, "none.npz", "No such file")
    assert not speaker.log


def test_imported_router_chooses_for_its_model(drpo: Drpo, speaker: FakeServer, router: Path) -> None:
    imported = drpo("import", router, "--model", "openai:world", "--licence", "CC0-1.0")
    assert (imported.code, imported.out) == (0, "openai:world: a router kept in drpo_prompts\n")
    router.unlink()
    for arguments in ([], ["--prompt", "openai:world"]):
        told = json.loads(drpo("generate", CHOSEN, *MODEL, *arguments, "--json").out)
        assert told["system_prompt"] == PROMPT_BY_QUERY[CHOSEN]
        assert told["system_prompt_source"] == "registry openai:world"
        assert told["system_prompt_choice"]["name"] == "special"
    assert last_messages(speaker)[0]["content"] == PROMPT_BY_QUERY[CHOSEN]
    (line,) = drpo("prompts").out.splitlines()
    assert "chosen by a router" in line
    shown = drpo("prompts", "openai:world")
    assert shown.out == f"{BEST}\n"
    assert any(one.startswith("router: routers/") for one in shown.err_lines)
    kept = json.loads(drpo("prompts", "openai:world", "--format", "json").out)
    assert kept["router"].startswith("routers/")
    assert kept["licence"] == "CC0-1.0"


def test_what_is_imported_over_a_router_says_so(drpo: Drpo, router: Path) -> None:
    (router.parent / "output.txt").write_text(f"{BEST}\n")
    for path in (router, Path("output.txt")):
        told = drpo("import", path, "--model", "m")
    assert "in place of the router from" in told.out
    assert PromptRegistry(Path("drpo_prompts")).require("m").router is None


def test_router_is_imported_for_a_model_that_is_named(drpo: Drpo, router: Path) -> None:
    assert_one_line(drpo("import", router), 2, "r.npz", "--model")
    router.write_text("{")
    assert_one_line(drpo("import", router, "--model", "m"), 2, "it is none")
    assert not Path("drpo_prompts").exists()
