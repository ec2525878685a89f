"""``drpo import`` keeps prompts by model name, ``drpo prompts`` shows them."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
from langchain_core.load import loads
from langchain_core.messages import HumanMessage, SystemMessage
from langsmith.schemas import PromptCommit

from drpo_graph.records import RunResult
from drpo_graph.registry import PromptRegistry, RegisteredPrompt
from tests.support.command import SMALL, Drpo, assert_one_line, read_result

PUBLISHED = Path(__file__).resolve().parents[3] / "shared/data/drpo"
DEFAULT = Path("drpo_prompts")


def write_result(folder: Path, text: str = "Be kind.\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "output.txt").write_text(text)
    return folder


def test_a_result_is_kept_under_its_folder_s_name_or_the_given_one(drpo: Drpo) -> None:
    folder = write_result(Path("some-model"))
    assert drpo("import", folder).code == 0
    assert drpo("import", folder / "output.txt", "--model", "org/model").code == 0
    assert [one.model for one in PromptRegistry(DEFAULT).list()] == ["org/model", "some-model"]
    assert drpo("prompts", "org/model").out == "Be kind.\n"
    assert [line.split()[0] for line in drpo("prompts").out.splitlines()] == ["org/model", "some-model"]


def test_a_prompt_that_is_no_result_needs_its_model_s_name(drpo: Drpo) -> None:
    Path("q.txt").write_text("Be kind.\n")
    assert_one_line(drpo("import", "q.txt"), 2, "Prompt q.txt", "--model")
    assert drpo("import", "q.txt", "--model", "m").code == 0
    assert [one.model for one in PromptRegistry(DEFAULT).list()] == ["m"]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published data is not here")
@pytest.mark.parametrize("path", [PUBLISHED, PUBLISHED / "model_mapping.json"])
def test_a_mapping_brings_what_is_there_and_tells_the_rest(drpo: Drpo, path: Path) -> None:
    outcome = drpo("import", path, "--registry", "kept")
    assert outcome.code == 1
    assert len(outcome.out.splitlines()) == 3
    assert len(outcome.err_lines) == 7 + 1
    assert outcome.err_lines[-1] == "error: 7 of 10 prompts were not imported."
    (misspelt,) = [line for line in outcome.err_lines if line.startswith("meta-llama/Llama-2-7b-hf: ")]
    assert "'./data/llama 2-7b/output.pkl' is missing" in misspelt
    assert "There is 'llama2-7b'" in misspelt
    assert len(PromptRegistry(Path("kept")).list()) == 3
    assert not DEFAULT.exists()


def test_a_mapping_of_which_nothing_is_there_fails(drpo: Drpo) -> None:
    Path("model_mapping.json").write_text(json.dumps({"m": "./data/m/output.pkl"}))
    outcome = drpo("import", "model_mapping.json")
    assert (outcome.code, outcome.out) == (1, "")
    fault, end = outcome.err_lines
    assert fault.startswith("m: './data/m/output.pkl' is missing")
    assert end == "error: 1 of 1 prompts were not imported."


def test_one_model_of_a_mapping_is_imported_alone(drpo: Drpo) -> None:
    write_result(Path("data/a"))
    Path("model_mapping.json").write_text(json.dumps({"a": "data/a", "b": "data/a", "c": "data/c"}))
    outcome = drpo("import", "model_mapping.json", "--model", "a")
    assert (outcome.code, outcome.err) == (0, "")
    assert [one.model for one in PromptRegistry(DEFAULT).list()] == ["a"]
    assert_one_line(drpo("import", "model_mapping.json", "--model", "d"), 2, "--model d")


def test_what_is_not_there_is_one_line(drpo: Drpo) -> None:
    assert_one_line(drpo("import", "nowhere"), 2, "nowhere")
    assert_one_line(drpo("prompts", "unknown"), 2, "unknown", "drpo prompts")
    assert "drpo import" in drpo("prompts").out


def test_nothing_that_is_printed_is_obeyed_by_a_terminal(drpo: Drpo) -> None:
    PromptRegistry(DEFAULT).add(RegisteredPrompt(model="m\x1b[2J", system_prompt="a\x1b[2Jb", source="s\x1b[2J"))
    Path("model_mapping.json").write_text(json.dumps({"x\x1b[2J\ny": "none"}))
    fault = drpo("import", "model_mapping.json")
    assert len(fault.err_lines) == 2
    assert "\x1b" not in drpo("prompts").out + drpo("prompts", "m\x1b[2J").out + fault.err


def test_gains_are_listed(drpo: Drpo) -> None:
    entry = RegisteredPrompt(model="m", system_prompt="p", run="t", reward=4.0, difference=0.1, is_significant=False)
    PromptRegistry(DEFAULT).add(entry)
    assert drpo("prompts").out == "m  1 characters  reward 4.00  +0.10 (not significant)  from t\n"


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("through_mapping", [False, True])
def test_a_hostile_pickle_does_nothing_and_is_told(drpo: Drpo, folder: Path, through_mapping: bool) -> None:
    victim = folder / "made"
    (write_result(folder / "model") / "output.pkl").write_bytes(pickle.dumps(Hostile(victim)))
    (folder / "model_mapping.json").write_text(json.dumps({"m": "model/output.pkl"}))
    outcome = drpo("import", "model_mapping.json" if through_mapping else "model")
    assert outcome.code == (1 if through_mapping else 2)
    assert "mkdir" in outcome.err
    assert "Nothing of it was run." in outcome.err
    assert not victim.exists()
    assert PromptRegistry(DEFAULT).list() == ()


def test_a_result_whose_model_s_name_can_be_no_file_s_keeps_no_other_from_being_imported(drpo: Drpo) -> None:
    write_result(Path("data/a"))
    Path("model_mapping.json").write_text(json.dumps({"x" * 400: "data/a", "a": "data/a"}))
    outcome = drpo("import", "model_mapping.json")
    assert (outcome.code, len(outcome.err_lines)) == (1, 2)
    assert [one.model for one in PromptRegistry(DEFAULT).list()] == ["a"]


def test_what_an_import_replaces_is_told(drpo: Drpo) -> None:
    PromptRegistry(DEFAULT).add(RegisteredPrompt(model="m", system_prompt="Former.", run="t"))
    outcome = drpo("import", write_result(Path("r")), "--model", "m", "--licence", "CC0-1.0")
    assert outcome.out == "m: 8 characters kept in drpo_prompts, in place of those from t\n"
    kept = PromptRegistry(DEFAULT).require("m")
    assert (kept.licence, kept.source) == ("CC0-1.0", "r")
    assert kept.date is not None


def test_near_names_are_told(drpo: Drpo) -> None:
    for model in ("mistralai/Mistral-7B-v0.1", "gpt-4o"):
        PromptRegistry(DEFAULT).add(RegisteredPrompt(model=model, system_prompt="p"))
    assert_one_line(drpo("prompts", "mistral-7b"), 2, "'mistral-7b'", "Near: mistralai/Mistral-7B-v0.1.")
    assert_one_line(drpo("generate", "x", "--model", "openai:world", "--prompt", "gpt4o"), 2, "Near: gpt-4o.")


@pytest.fixture
def exported(drpo: Drpo, folder: Path) -> RunResult:
    """The result of a run whose prompt is in the registry, for its base model."""
    options = ("--initial-prompt", 'Answer with {"key": "value"}.', "--display", "none", "--thread-id", "t")
    assert drpo("optimize", *SMALL, *options).code == 0
    outcome = drpo("export", "t", "--registry", DEFAULT, "--licence", "MIT")
    assert (outcome.code, outcome.err) == (0, "")
    return read_result(folder / "drpo_runs")


def test_a_run_s_prompt_is_kept_with_its_provenance(drpo: Drpo, exported: RunResult) -> None:
    kept = PromptRegistry(DEFAULT).require("openai:world")
    assert kept.system_prompt == exported.system_prompt
    assert (kept.run, kept.reward, kept.licence) == ("t", exported.reward, "MIT")
    assert not Path("out").exists()
    told = drpo("prompts", "openai:world")
    assert told.out == f"{exported.system_prompt}\n"
    assert {"run: t", "licence: MIT", f"date: {kept.date}"} <= set(told.err_lines)
    assert drpo("export", "t", "--registry", DEFAULT, "--model", "other", "--output", "out").code == 0
    assert PromptRegistry(DEFAULT).require("other").system_prompt == exported.system_prompt
    assert (Path("out") / "t" / "best_prompt.txt").is_file()


def test_every_form_of_a_kept_prompt_leads_back_to_it(drpo: Drpo, exported: RunResult) -> None:
    for form in ("txt", "json", "template", "hub"):
        assert drpo("prompts", "openai:world", "--format", form, "-o", f"p.{form}").code == 0
        assert stat.S_IMODE(Path(f"p.{form}").stat().st_mode) == 0o600
    assert drpo("import", "p.txt", "--model", "again").code == 0
    assert PromptRegistry(DEFAULT).require("again").system_prompt == exported.system_prompt
    kept = RegisteredPrompt.model_validate_json(Path("p.json").read_text())
    assert kept == PromptRegistry(DEFAULT).require("openai:world")
    hub = json.loads(Path("p.hub").read_text())
    manifest = PromptCommit(owner="-", repo="r", commit_hash="0", manifest=hub["object"], examples=[]).manifest
    expected = [SystemMessage(exported.system_prompt), HumanMessage("Hi {there}.")]
    for text in (Path("p.template").read_text(), json.dumps(manifest)):
        template = loads(text, allowed_objects="core")
        assert template.invoke({"messages": [HumanMessage("Hi {there}.")]}).to_messages() == expected
    assert drpo("prompts", "openai:world", "--format", "hub").out == Path("p.hub").read_text()


def test_what_an_export_cannot_keep_is_refused(drpo: Drpo) -> None:
    assert drpo("optimize", *SMALL, "--display", "none", "--thread-id", "u", "--max-calls", "8").code == 3
    for arguments, parts in (
        (["u"], ["--output", "--registry"]),
        (["--all", "--registry", "r"], ["--all"]),
        (["u", "--output", "o", "--licence", "MIT"], ["--licence", "--registry"]),
        (["u", "--registry", "r"], ["'u'", "no result yet"]),
    ):
        assert_one_line(drpo("export", *arguments), 2, *parts)
    assert not Path("r").exists()
    assert_one_line(drpo("prompts", "--format", "json"), 2, "--format", "Name its model")


def test_generate_takes_the_model_s_prompt_from_the_registry(drpo: Drpo) -> None:
    for model in ("world", "other"):
        PromptRegistry(DEFAULT).add(RegisteredPrompt(model=model, system_prompt=f"Prompt of {model}."))
    ask = ("generate", "x", "--model", "openai:world", "--json")
    assert json.loads(drpo(*ask).out)["system_prompt"] == "Prompt of world."
    told = json.loads(drpo(*ask, "--prompt", "other").out)
    assert (told["system_prompt"], told["system_prompt_source"]) == ("Prompt of other.", "registry other")
    assert_one_line(drpo(*ask, "--registry", "missing"), 2, "missing", "no such folder")
