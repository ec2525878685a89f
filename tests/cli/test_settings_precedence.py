"""Later ones win: defaults, ``--config``, flags for all roles, flags of one role, ``--set``."""

import json
from pathlib import Path

import pytest

from drpo_graph.records import ROLES
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from tests.support.command import Drpo


def settings_of(drpo: Drpo, *arguments: str) -> Settings:
    """Return the settings that the checkpoint keeps of a run; the server knows none of its models, so it stops."""
    outcome = drpo("optimize", *arguments, "--display", "none", "--disable-log")
    assert (outcome.code, "404" in outcome.err) == (1, True), outcome.err
    newest = json.loads(drpo("runs", "--json").out)[0]["thread_id"]
    return Settings.model_validate(json.loads(drpo("show", newest, "--json").out)["run"]["settings"])


def test_without_anything_else_the_defaults_hold(drpo: Drpo) -> None:
    models = {f"{role}_model": "openai:all" for role in ROLES}
    assert settings_of(drpo, "--model", "openai:all") == build_settings(models)


def test_a_flag_of_one_role_wins_over_the_flag_for_all(drpo: Drpo) -> None:
    settings = settings_of(drpo, "--critic-model", "openai:judge", "--model", "openai:all")
    assert {role: settings.role(role).model for role in ROLES} == {
        "base": "openai:all",
        "metrics": "openai:all",
        "critic": "openai:judge",
        "optimizer": "openai:all",
    }


def test_flags_win_over_the_file_and_set_wins_over_flags(drpo: Drpo, folder: Path) -> None:
    (folder / "run.toml").write_text(
        'depth = 4\nbeam_size = 4\nn_actions = 4\nseed = 4\n[critic]\nmodel = "openai:file"\nmax_tokens = 99\n'
    )
    arguments = ("--config", "run.toml", "--depth", "5", "--beam-size", "5", "--model", "openai:flag")
    settings = settings_of(drpo, *arguments, "--set", "beam_size=6", "--set", "critic.model=openai:set")
    assert (settings.seed, settings.n_actions, settings.depth, settings.beam_size) == (4, 4, 5, 6)
    assert (settings.critic.model, settings.critic.max_tokens) == ("openai:set", 99)
    assert settings.base.model == "openai:flag"


LAYERS = {"all": (), "one": ("--optimizer-model", "openai:one"), "set": ("--set", "optimizer.max_tokens=7")}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_role_keeps_what_the_file_says_where_a_flag_says_nothing(layer: str, drpo: Drpo, folder: Path) -> None:
    (folder / "run.json").write_text('{"optimizer": {"temperature": 1.25}}')
    settings = settings_of(drpo, "--model", "openai:all", "--config", "run.json", *LAYERS[layer])
    assert (settings.optimizer.temperature, settings.optimizer.top_p) == (1.25, 0.95)


def test_published_names_are_taken_on_the_command_line(drpo: Drpo, folder: Path) -> None:
    (folder / "prompt.md").write_text("Be brief.\n")
    settings = settings_of(
        drpo,
        *("--base-model-name", "openai:b", "--metrics-model-name", "openai:m", "--eval-model-name", "openai:e"),
        *("--optimize-model-name", "openai:o", "--initial-system-prompt", "@prompt.md"),
        *("--num-training-examples", "7", "--temperature", "0.3", "--is-gpt", "--disable-tqdm"),
        *("--base-model-family", "mistral"),
    )
    assert [settings.role(role).model for role in ROLES] == ["openai:b", "openai:m", "openai:e", "openai:o"]
    assert (settings.num_queries, settings.optimizer.temperature) == (7, 0.3)
    assert settings.initial_prompt == "Be brief."
    assert settings.base.prompt_format == "chat"
    assert settings_of(drpo, "--model", "openai:all", "--no-is-gpt").base.prompt_format == "flat"


def test_published_names_are_taken_in_files_and_by_set(drpo: Drpo, folder: Path) -> None:
    (folder / "run.toml").write_text(
        'eval_model_name = "openai:e"\noptimize_model_name = "openai:o"\nnum_training_examples = 9\n'
        'initial_system_prompt = "@prompt.md"\nbase_model_name = "openai:b"\nmetrics_model_name = "openai:m"\n'
    )
    (folder / "prompt.md").write_text("Be kind.")
    settings = settings_of(drpo, "--config", "run.toml", "--set", "optimize-model-name=openai:set")
    assert (settings.critic.model, settings.optimizer.model, settings.num_queries) == ("openai:e", "openai:set", 9)
    assert settings.initial_prompt == "Be kind."


def test_set_takes_json_and_plain_text(drpo: Drpo) -> None:
    overrides = ("--set", 'base.stop=["a","b"]', "--set", 'base.extra_body={"top_k": 5}', "--set", "seed=12")
    overrides = ("--model", "openai:all", *overrides)
    settings = settings_of(drpo, *overrides, "--set", "initial_prompt=Be exact.", "--set", "keep_parents=false")
    assert (settings.base.stop, settings.base.extra_body) == (("a", "b"), {"top_k": 5})
    assert (settings.seed, settings.initial_prompt, settings.keep_parents) == (12, "Be exact.", False)
