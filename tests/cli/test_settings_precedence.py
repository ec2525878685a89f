"""Later ones win: defaults, ``--config``, flags for all roles, flags of one role, ``--set``."""

from pathlib import Path

import pytest

from drpo_graph.records import ROLES
from drpo_graph.settings import Settings
from tests.support.command import Drpo, list_runs


@pytest.fixture
def read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Return the settings that a command line would start a run with; the run itself is not started."""
    from drpo_graph.cli import execution

    started: list[execution.NewRun] = []
    monkeypatch.setattr(execution, "start", lambda run, thread_id, **_: started.append(run))
    return started


def settings_of(drpo: Drpo, started: object, *arguments: str) -> Settings:
    outcome = drpo("optimize", *arguments)
    assert outcome.code == 0, outcome.err
    assert isinstance(started, list)
    settings = started[-1].settings
    assert isinstance(settings, Settings)
    return settings


def test_without_anything_the_defaults_hold(drpo: Drpo, read: object) -> None:
    assert settings_of(drpo, read) == Settings()


def test_a_flag_of_one_role_wins_over_the_flag_for_all(drpo: Drpo, read: object) -> None:
    settings = settings_of(drpo, read, "--critic-model", "openai:judge", "--model", "openai:all")
    assert {role: settings.role(role).model for role in ROLES} == {
        "base": "openai:all",
        "metrics": "openai:all",
        "critic": "openai:judge",
        "optimizer": "openai:all",
    }


def test_flags_win_over_the_file_and_set_wins_over_flags(drpo: Drpo, read: object, folder: Path) -> None:
    (folder / "run.toml").write_text(
        'depth = 4\nbeam_size = 4\nn_actions = 4\nseed = 4\n[critic]\nmodel = "openai:file"\nmax_tokens = 99\n'
    )
    arguments = ("--config", "run.toml", "--depth", "5", "--beam-size", "5", "--model", "openai:flag")
    settings = settings_of(drpo, read, *arguments, "--set", "beam_size=6", "--set", "critic.model=openai:set")
    assert (settings.seed, settings.n_actions, settings.depth, settings.beam_size) == (4, 4, 5, 6)
    assert (settings.critic.model, settings.critic.max_tokens) == ("openai:set", 99)
    assert settings.base.model == "openai:flag"


@pytest.mark.parametrize("layer", ["--model=openai:all", "--optimizer-model=openai:one", "--set"])
def test_a_role_keeps_what_the_file_says_where_a_flag_says_nothing(
    layer: str, drpo: Drpo, read: object, folder: Path
) -> None:
    (folder / "run.json").write_text('{"optimizer": {"temperature": 1.25}}')
    flags = ("--set", "optimizer.max_tokens=7") if layer.startswith("--set") else (layer,)
    settings = settings_of(drpo, read, "--config", "run.json", *flags)
    assert (settings.optimizer.temperature, settings.optimizer.top_p) == (1.25, 0.95)


def test_published_names_are_taken_on_the_command_line(drpo: Drpo, read: object, folder: Path) -> None:
    (folder / "prompt.md").write_text("Be brief.\n")
    settings = settings_of(
        drpo,
        read,
        *("--base-model-name", "openai:b", "--metrics-model-name", "openai:m", "--eval-model-name", "openai:e"),
        *("--optimize-model-name", "openai:o", "--initial-system-prompt", "@prompt.md"),
        *("--num-training-examples", "7", "--temperature", "0.3", "--is-gpt", "--disable-tqdm"),
        *("--base-model-family", "mistral"),
    )
    assert [settings.role(role).model for role in ROLES] == ["openai:b", "openai:m", "openai:e", "openai:o"]
    assert (settings.num_queries, settings.optimizer.temperature) == (7, 0.3)
    assert settings.initial_prompt == "Be brief."
    assert settings.base.prompt_format == "chat"
    assert settings_of(drpo, read, "--no-is-gpt").base.prompt_format == "flat"


def test_published_names_are_taken_in_files_and_by_set(drpo: Drpo, read: object, folder: Path) -> None:
    (folder / "run.toml").write_text(
        'eval_model_name = "openai:e"\noptimize_model_name = "openai:o"\nnum_training_examples = 9\n'
        'initial_system_prompt = "@prompt.md"\n'
    )
    (folder / "prompt.md").write_text("Be kind.")
    settings = settings_of(drpo, read, "--config", "run.toml", "--set", "optimize-model-name=openai:set")
    assert (settings.critic.model, settings.optimizer.model, settings.num_queries) == ("openai:e", "openai:set", 9)
    assert settings.initial_prompt == "Be kind."


def test_set_takes_json_and_plain_text(drpo: Drpo, read: object) -> None:
    overrides = ("--set", 'base.stop=["a","b"]', "--set", 'base.extra_body={"top_k": 5}', "--set", "seed=12")
    settings = settings_of(drpo, read, *overrides, "--set", "initial_prompt=Be exact.", "--set", "keep_parents=false")
    assert (settings.base.stop, settings.base.extra_body) == (("a", "b"), {"top_k": 5})
    assert (settings.seed, settings.initial_prompt, settings.keep_parents) == (12, "Be exact.", False)


def test_reading_settings_starts_nothing(drpo: Drpo, read: object) -> None:
    settings_of(drpo, read, "--model", "openai:world")
    assert list_runs(drpo) == {}
