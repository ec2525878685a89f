"""Registered prompts are kept by model name, privately, and come back as they were."""

import datetime
import json
import os
import re
import stat
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from pydantic import ValidationError

from drpo_graph.errors import UsageError
from drpo_graph.prompts.placeholders import FieldStyle
from drpo_graph.records import PairedComparison, RunResult, Validation
from drpo_graph.registry import GENERAL_PROMPT, PromptRegistry, RegisteredPrompt
from drpo_graph.registry.forms import describe_provenance, render_prompt


def make_result(*, validation: Validation | None = None, candidate_id: str = "1.0.0") -> RunResult:
    return RunResult(
        thread_id="t",
        status="done",
        system_prompt="Be kind.",
        candidate_id=candidate_id,
        reward=4.5,
        path_reward=None,
        initial_prompt="Help.",
        initial_reward=3.0,
        initial_reward_same_queries=3.5,
        depth=1,
        trace=("0", "1.0.0"),
        beam=("1.0.0",),
        validation=validation,
        usage_by_role={},
        failures_by_kind={},
        fingerprints={},
        format=1,
    )


VALIDATION = Validation(
    num_queries=9,
    initial_reward=3.2,
    comparisons=(
        PairedComparison(
            candidate_id="1.0.0", num_queries=9, reward=4.0, difference=0.8, interval_low=0.3, interval_high=1.2
        ),
    ),
    selected_id="1.0.0",
    is_significant=True,
)


@pytest.mark.parametrize("model", ["gpt-4", "org/model", "../../etc/passwd", "..", ".hidden", "a%2Fb", "modèle 7b"])
def test_a_prompt_comes_back_and_stays_in_the_folder(tmp_path: Path, model: str) -> None:
    registry = PromptRegistry(tmp_path / "prompts")
    prompt = RegisteredPrompt(model=model, system_prompt="Be {kind}.", date=datetime.date(2025, 1, 2), licence="MIT")
    path = registry.add(prompt)
    assert path.resolve().parent == (tmp_path / "prompts").resolve()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert '"2025-01-02"' in path.read_text()
    assert registry.find(model) == registry.for_model(model) == prompt
    assert registry.list() == (prompt,)


def test_an_unknown_model_gets_the_general_prompt(tmp_path: Path) -> None:
    registry = PromptRegistry(tmp_path / "none")
    assert registry.find("m") is None
    assert registry.list() == ()
    assert registry.for_model("m").system_prompt == GENERAL_PROMPT
    assert not (tmp_path / "none").exists()


def test_a_later_prompt_replaces_the_former(tmp_path: Path) -> None:
    registry = PromptRegistry(tmp_path)
    for text in ("one", "two"):
        registry.add(RegisteredPrompt(model="m", system_prompt=text))
    assert [one.system_prompt for one in registry.list()] == ["two"]


@pytest.mark.parametrize("model", ["", "\udcff", "x" * 400])
def test_a_name_that_names_no_file_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(UsageError, match="name"):
        PromptRegistry(tmp_path).find(model)


def test_a_damaged_file_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"model": "m"}')
    with pytest.raises(UsageError, match=r"m\.json: system_prompt: "):
        PromptRegistry(tmp_path).list()


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    registry = PromptRegistry(tmp_path / "file")
    with pytest.raises(UsageError, match="file"):
        registry.list()
    with pytest.raises(UsageError, match="file"):
        registry.add(RegisteredPrompt(model="m", system_prompt="p"))


def test_a_validated_result_brings_its_gain_and_its_interval() -> None:
    prompt = RegisteredPrompt.from_result(make_result(validation=VALIDATION), model="m", source="s")
    assert (prompt.model, prompt.system_prompt, prompt.source, prompt.run) == ("m", "Be kind.", "s", "t")
    assert (prompt.reward, prompt.initial_reward, prompt.difference) == (4.0, 3.2, 0.8)
    assert (prompt.interval_low, prompt.interval_high, prompt.is_significant) == (0.3, 1.2, True)


def test_a_result_without_validation_claims_no_gain() -> None:
    prompt = RegisteredPrompt.from_result(make_result(), model="m")
    assert (prompt.reward, prompt.initial_reward) == (4.5, 3.5)
    assert prompt.difference is prompt.interval_low is prompt.is_significant is None


def test_an_initial_prompt_that_was_kept_has_gained_nothing() -> None:
    prompt = RegisteredPrompt.from_result(make_result(validation=VALIDATION, candidate_id="0"), model="m")
    assert (prompt.reward, prompt.difference, prompt.is_significant) == (3.2, None, False)


def test_the_template_holds_the_prompt_word_by_word() -> None:
    template = RegisteredPrompt(model="m", system_prompt='Use {"a": {b}}.').to_chat_prompt_template()
    asked = template.invoke({"messages": [HumanMessage("{hi}")]}).to_messages()
    assert asked == [SystemMessage('Use {"a": {b}}.'), HumanMessage("{hi}")]


@pytest.mark.parametrize(
    ("style", "text"),
    [("format", "Help {user} {{x}}."), ("mustache", "Help {{user}} {x}."), ("dollar", "Help $user {x}.")],
)
def test_placeholders_are_the_template_s_variables(style: FieldStyle, text: str) -> None:
    prompt = RegisteredPrompt(model="m", system_prompt=text, placeholders=style)
    asked = prompt.to_chat_prompt_template().invoke({"user": "Ann {y}", "messages": []}).to_messages()
    assert asked == [SystemMessage("Help Ann {y} {x}.")]


@pytest.mark.parametrize("text", ["Help {user", "Read {messages}."])
def test_a_template_that_cannot_be_one_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="Prompt of 'm'"):
        RegisteredPrompt(model="m", system_prompt=text, placeholders="format").to_chat_prompt_template()


def test_a_model_is_known_without_its_provider_too(tmp_path: Path) -> None:
    registry = PromptRegistry(tmp_path)
    registry.add(RegisteredPrompt(model="world", system_prompt="p"))
    assert registry.for_model("openai:world").system_prompt == "p"
    assert registry.find("openai:world") is None


def test_another_model_s_file_is_neither_found_nor_overwritten(tmp_path: Path) -> None:
    registry = PromptRegistry(tmp_path)
    # As where "M.json" and "m.json" are one file.
    registry.add(RegisteredPrompt(model="M", system_prompt="p")).rename(tmp_path / "m.json")
    assert registry.find("m") is None
    with pytest.raises(UsageError, match="'M', not of 'm'"):
        registry.add(RegisteredPrompt(model="m", system_prompt="q"))


def test_a_pipe_in_a_prompt_s_place_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.json")
    with pytest.raises(UsageError, match="no file"):
        PromptRegistry(tmp_path).find("m")


def test_half_a_character_is_replaced_and_a_blank_prompt_refused(tmp_path: Path) -> None:
    PromptRegistry(tmp_path).add(RegisteredPrompt(model="m", system_prompt="a\ud800b"))
    assert PromptRegistry(tmp_path).require("m").system_prompt == "a\ufffdb"
    with pytest.raises(ValidationError, match="blank"):
        RegisteredPrompt(model="m", system_prompt=" ")


def test_a_file_that_vanishes_hides_no_other(tmp_path: Path) -> None:
    registry = PromptRegistry(tmp_path)
    registry.add(RegisteredPrompt(model="m", system_prompt="Help."))
    (tmp_path / "zz.json").symlink_to(tmp_path / "nowhere")
    assert [one.model for one in registry.list()] == ["m"]


def test_provenance_of_any_text_can_be_kept(tmp_path: Path) -> None:
    PromptRegistry(tmp_path).add(
        RegisteredPrompt(model="m", system_prompt="Help.", source="d\udcff", licence="x\udcff")
    )
    assert PromptRegistry(tmp_path).list()[0].licence == "x\ufffd"


def test_names_of_the_hub_tell_models_apart() -> None:
    models = ["a/b", "a-b", "A-b", "\u6a21\u578b", "\u578b", "x" * 200, "x" * 201]
    handles = [
        json.loads(render_prompt(RegisteredPrompt(model=one, system_prompt="Help."), "hub"))["prompt_identifier"]
        for one in models
    ]
    assert len(set(handles)) == len(models)
    assert handles[1] == "drpo-a-b"
    assert all(re.fullmatch(r"[a-z][a-z0-9_-]{0,99}", one) for one in handles)


def test_prompt_that_was_not_compared_is_told_as_such() -> None:
    found = make_result().model_copy(update={"initial_reward_same_queries": None})
    known = RegisteredPrompt.from_result(found, model="m")
    assert (known.reward, known.initial_reward) == (4.5, None)
    assert "reward: 4.50 (not compared with the initial prompt on the same queries)" in describe_provenance(known)
    kept = found.model_copy(update={"system_prompt": found.initial_prompt})
    assert RegisteredPrompt.from_result(kept, model="m").initial_reward == 4.5
