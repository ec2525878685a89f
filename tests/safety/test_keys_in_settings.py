"""A key that is given where it would be stored is refused, wherever it enters, in words that do not repeat it."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from drpo_graph import build_settings, optimize
from drpo_graph.errors import UsageError
from drpo_graph.graph import build_graph
from drpo_graph.icl import optimize_icl
from drpo_graph.oirl.collection import collect_demonstrations
from drpo_graph.records import ROLES, ICLExample
from drpo_graph.registry import PromptRegistry, RegisteredPrompt
from drpo_graph.runs.runner import RunOptions
from drpo_graph.safety.api_keys import KeyFinder
from drpo_graph.settings.caller_settings import CallerContext
from drpo_graph.settings.settings import RoleSettings, Settings
from tests.support.command import SMALL, Drpo

KEY = "drpo-7d0f4c91e2aa53bb60"
"""Of no form that is known: what the environment holds is a key."""
FORMS = (
    "sk-proj-Ab3dEf6hIj9kLm2nOp5q",
    "sk-ant-api03-Ab3dEf6hIj9kLm2nOp5q",
    "hf_Ab3dEf6hIj9kLm2nOp5qRs8t",
    "AKIA0123456789ABCDEF",
)
MODELS = {f"{role}_model": "openai:m" for role in ROLES}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    return tmp_path


def assert_nowhere(folder: Path, said: str) -> None:
    assert KEY[:12] not in said
    assert "OPENAI_API_KEY" in said
    inputs = ("own.json", "q.jsonl", "p.txt", "e.json")
    files = [one for one in folder.rglob("*") if one.is_file() and one.name not in inputs]
    assert [one for one in files if KEY[:12].encode() in one.read_bytes() or KEY[:12] in one.name] == []


def command_lines() -> dict[str, tuple[str, ...]]:
    """Return command lines that hold the key, or name a file that does."""
    return {
        "model": ("optimize", "--model", f"openai:{KEY}"),
        "prompt": ("optimize", *SMALL, "--initial-prompt", f"Say {KEY}."),
        "prompt file": ("optimize", *SMALL, "--initial-prompt", "@p.txt"),
        "thread id": ("optimize", *SMALL, "--thread-id", KEY),
        "reward": ("optimize", *SMALL, "--reward", f"m:{KEY.replace('-', '_')}", "--set", f"critic.stop=[\"{KEY}\"]"),
        "embeddings": ("optimize", *SMALL, "--ret-icl", "--embeddings", f"openai:{KEY}"),
        "variable": ("optimize", *SMALL, "--set", f"templates={KEY}"),
        "header": ("optimize", *SMALL, "--set", f'base.extra_body={{"extra_headers": {{"X-Own": "{KEY}"}}}}'),
        "query": ("optimize", "q.jsonl", *SMALL),
        "settings file": ("optimize", *SMALL, "--config", "own.json"),
        "compat": ("optimize", *SMALL, "--set", "depth=none", "--initial-prompt", KEY),
        "icl": ("icl", "e.json", "--model", "openai:m"),
        "icl model": ("icl", "--model", f"openai:{KEY}"),
        "collect": ("oirl", "collect", "q.jsonl", "--model", "openai:m", "--prompts", "p.txt"),
        "collect model": ("oirl", "collect", "--model", f"openai:{KEY}"),
        "import": ("import", "p.txt", "--model", "m"),
        "import model": ("import", "clean.txt", "--model", KEY),
        "check": ("models", "check", f"openai:{KEY}"),
    }  # fmt: skip


@pytest.mark.parametrize("name", command_lines())
@pytest.mark.parametrize("is_debug", [False, True])
def test_command_line_with_a_key_is_refused(name: str, is_debug: bool, drpo: Drpo, place: Path) -> None:
    Path("own.json").write_text(json.dumps({"initial_prompt": f"Say {KEY}."}))
    Path("q.jsonl").write_text(json.dumps({"query": f"Is {KEY} mine?", "answer": "1"}) + "\n")
    Path("e.json").write_text(json.dumps({"Why?": f"Because of {KEY}."}))
    Path("p.txt").write_text(f"Say {KEY}.\n")
    Path("clean.txt").write_text("Say it.\n")
    outcome = drpo(*command_lines()[name], is_debug=is_debug)
    assert outcome.code == 2, (outcome.out, outcome.err)
    assert_nowhere(place, outcome.out + outcome.err)


def in_python() -> dict[str, Callable[[], Awaitable[object]]]:
    """Return calls that are given the key."""
    clean = Settings(**{role: RoleSettings(model="openai:m") for role in ROLES})  # type: ignore[arg-type]
    told = clean.model_copy(update={"initial_prompt": f"Say {KEY}."})
    options = RunOptions(checkpoint=Path("runs.sqlite"))
    graph = {"configurable": {"thread_id": "t"}}

    async def keep() -> None:
        PromptRegistry(Path("prompts")).add(RegisteredPrompt(model="m", system_prompt=f"Say {KEY}."))

    async def build() -> None:
        build_settings({**MODELS, "initial_prompt": f"Say {KEY}."})

    async def invoke() -> None:
        context = CallerContext(initial_prompt=f"Say {KEY}.")
        await build_graph(clean).ainvoke({"queries": ["?"]}, graph, context=context)  # type: ignore[call-overload]

    async def query_in_graph() -> None:
        await build_graph(clean).ainvoke({"queries": [f"Is {KEY} mine?"]}, graph)  # type: ignore[call-overload]

    return {
        "build_settings": build,
        "optimize": lambda: optimize(["?"], settings=told, options=options),
        "query": lambda: optimize([f"Is {KEY} mine?"], settings=clean, options=options),
        "thread id": lambda: optimize(["?"], settings=clean, options=options, thread_id=KEY),
        "overrides": invoke,
        "query in a graph": query_in_graph,
        "icl": lambda: optimize_icl([ICLExample(query="?", response=KEY)], settings=clean, options=options),
        "icl settings": lambda: optimize_icl([ICLExample(query="?", response="!")], settings=told, options=options),
        "collect": lambda: collect_demonstrations(settings=clean, checker="exact", prompts=[f"Say {KEY}."]),
        "checker": lambda: collect_demonstrations(settings=clean, checker=f"regex:{KEY}"),
        "registry": keep,
    }


@pytest.mark.parametrize("name", in_python())
async def test_python_code_that_gives_a_key_is_refused(name: str, place: Path) -> None:
    with pytest.raises(UsageError) as caught:
        await in_python()[name]()
    chain, error = "", caught.value
    while error is not None:
        chain, error = chain + str(error), error.__cause__  # type: ignore[assignment]
    assert_nowhere(place, chain)


@pytest.mark.parametrize("form", FORMS)
def test_name_of_a_key_s_form_is_refused_and_a_prompt_that_shows_one_is_not(form: str) -> None:
    for names in ({"base_model": f"openai:{form}"}, {"model": form}, {"critic_base_url": f"https://host/{form}/v1"}):
        with pytest.raises(UsageError, match="what looks like a key") as caught:
            build_settings(names)
        assert form not in str(caught.value)
    build_settings({**MODELS, "initial_prompt": f"Never repeat keys such as {form}."})


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("POSTGRES_PASSWORD", "postgres", "You know postgres well."),
        ("OPENAI_API_KEY", "not-needed", "Reasons are not-needed."),
        ("OPENAI_API_KEY", "sk-no-key-required", "Say sk-no-key-required."),
        ("OPENAI_API_KEY", "", "Say nothing."),
        ("SOME_TOKEN", "1234567890123", "Call 1234567890123."),
        ("EDITOR", "drpo-7d0f4c91e2aa53bb60-x", "The editor drpo-7d0f4c91e2aa53bb6 is fine."),
    ],
)
def test_ordinary_text_is_not_taken_for_a_key(
    variable: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert build_settings({**MODELS, "initial_prompt": text}).initial_prompt == text


@pytest.mark.parametrize(
    "name",
    [
        "vllm:hf-internal-testing/tiny-random-LlamaForCausalLM",
        "openai:gpt-5.4-mini-2026-03-17",
        "vllm:Qwen/Qwen3-30B-A3B-Instruct-2507-FP8",
        "sk-experiment-number-12-2026-11-30",
        "hf_run_20261130_1200",
        "ft:gpt-4o-mini-2024-07-18:my-org:custom_suffix:AbCdEf12",
    ],
)
def test_usual_names_look_like_no_key(name: str) -> None:
    assert KeyFinder().find(name, is_name=True) == ""
