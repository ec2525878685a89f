"""``drpo import`` keeps prompts by model name, ``drpo prompts`` shows them."""

import json
from pathlib import Path

import pytest

from drpo_graph.prompt_registry import PromptRegistry, RegisteredPrompt
from tests.support.command import Drpo, assert_one_line

PUBLISHED = Path(__file__).resolve().parents[3] / "shared/data/drpo"
DEFAULT = Path("drpo_runs/prompts")


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


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published data is not here")
@pytest.mark.parametrize("path", [PUBLISHED, PUBLISHED / "model_mapping.json"])
def test_a_mapping_brings_what_is_there_and_tells_the_rest(drpo: Drpo, path: Path) -> None:
    outcome = drpo("import", path, "--registry", "kept")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 3
    assert len(outcome.err_lines) == 7
    assert len(PromptRegistry(Path("kept")).list()) == 3
    assert not DEFAULT.exists()


def test_a_mapping_of_which_nothing_is_there_fails(drpo: Drpo) -> None:
    Path("model_mapping.json").write_text(json.dumps({"m": "./data/m/output.pkl"}))
    assert_one_line(drpo("import", "model_mapping.json"), 1, "m: ", "data/m/output.pkl")


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
    assert len(fault.err_lines) == 1
    assert "\x1b" not in drpo("prompts").out + drpo("prompts", "m\x1b[2J").out + fault.err


def test_gains_are_listed(drpo: Drpo) -> None:
    entry = RegisteredPrompt(model="m", system_prompt="p", run="t", reward=4.0, difference=0.1, is_significant=False)
    PromptRegistry(DEFAULT).add(entry)
    assert drpo("prompts").out == "m  1 characters  reward 4.00  +0.10 (not significant)  from t\n"
