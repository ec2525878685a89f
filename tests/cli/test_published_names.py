"""Every name of the published command line is taken: with hyphens, underscores, ``=True``, and in settings files."""

import json
import logging
from pathlib import Path

import pytest

from drpo_graph.cli.options import Serving, Sources
from drpo_graph.cli.published_names import translate
from drpo_graph.cli.published_options import Published, shape_serving
from drpo_graph.errors import UsageError
from drpo_graph.records import ROLES
from drpo_graph.settings.layers import build_settings
from tests.cli.test_settings_precedence import settings_of
from tests.support.command import SMALL, Drpo, assert_one_line

OURS = {
    "base_model_name": ("openai:b", "--base-model", "openai:b"),
    "metrics_model_name": ("openai:m", "--metrics-model", "openai:m"),
    "eval_model_name": ("openai:e", "--critic-model", "openai:e"),
    "optimize_model_name": ("openai:o", "--optimizer-model", "openai:o"),
    "initial_system_prompt": ("Be brief.", "--initial-prompt", "Be brief."),
    "num_training_examples": ("7", "--num-queries", "7"),
    "metrics_cache_path": ("c.json", "--metrics-cache", "c.json"),
    "n_actions": ("3", "--n-actions", "3"),
    "temperature": ("0.2", "--temperature", "0.2"),
    "depth": ("20", "--depth", "20"),
    "max_depth_increase": ("10", "--max-depth-increase", "10"),
    "beam_size": ("2", "--beam-size", "2"),
    "k": ("2", "--k", "2"),
    "log_dir": ("logs", "--log-dir", "logs"),
    "logging_level": ("INFO", "--logging-level", "INFO"),
    "data_dir": ("data", "--data-dir", "data"),
    "base_model_family": ("mistral", "--base-model-family", "mistral"),
    "base_model_download_dir": ("models", "--base-model-download-dir", "models"),
    "cuda_visible_devices": ("0,1", "--cuda-visible-devices", "0,1"),
    "num_gpus": ("2", "--num-gpus", "2"),
}
SWITCHES = {"is_GPT": "is-gpt", "ret_icl": "ret-icl", "disable_log": "disable-log", "disable_tqdm": "disable-tqdm"}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("sign", ["_", "-"])
def test_each_name_is_ours_in_every_form(name: str, sign: str) -> None:
    value, flag, given = OURS[name]
    typed = f"--{name.replace('_', sign)}"
    assert translate(["optimize", typed, value]).arguments == ["optimize", flag, given]
    assert translate(["optimize", f"{typed}={value}"]).arguments == ["optimize", f"{flag}={given}"]


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("sign", ["_", "-"])
def test_each_switch_is_ours_in_every_form(name: str, sign: str) -> None:
    typed, ours = f"--{name.replace('_', sign)}", f"--{SWITCHES[name]}"
    opposite = [f"--no-{SWITCHES[name]}"] if name in ("is_GPT", "ret_icl") else []
    for words in ([typed], [f"{typed}=True"], [f"{typed}=true"], [typed, "True"]):
        assert translate(["optimize", *words, "data"]).arguments == ["optimize", ours, "data"]
    for words in ([f"{typed}=False"], [typed, "False"]):
        assert translate(["optimize", *words, "data"]).arguments == ["optimize", *opposite, "data"]
    with pytest.raises(UsageError, match=f"^{typed}=maybe: expected True or False"):
        translate(["optimize", f"{typed}=maybe"])


def test_values_and_another_program_s_flags_stay_as_they_are() -> None:
    words = ["serve", "org/my_model", "--served_model_name", "a_b", "--", "--max_num_seqs=3", "--enforce_eager", "True"]
    expected = ["serve", "org/my_model", "--served-model-name", *words[3:]]
    assert translate(words).arguments == expected
    assert translate(["optimize", "--set", "critic.max_tokens=3"]).arguments[-1] == "critic.max_tokens=3"
    served = translate(["serve", "m", "--base_model_download_dir", "models", "--num_gpus=2"]).arguments
    assert served == ["serve", "m", "--download-dir", "models", "--num-gpus=2"]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("--num_training_examples=0",), "num_training_examples"),
        (("--num_training_examples", "many"), "--num_training_examples"),
        (("--num-training-examples", "many"), "--num-training-examples"),
        (("--beam_size=0",), "beam_size"),
        (("--beam_size", "wide"), "--beam_size"),
        (("--eval_model_name=gpt-4o",), "eval_model_name"),
        (("--temperature=9",), "temperature"),
        (("--metrics_cache_path=nowhere.json",), "metrics_cache_path: there is no file nowhere.json"),
        (("--metrics-cache-path", "cache.txt"), "metrics-cache-path: cache.txt: expected the published JSON form"),
        (("--data_dir", "nowhere"), "data_dir: there is no nowhere"),
        (("--ret_icl=maybe",), "--ret_icl"),
        (("--num_gpus", "0"), "--num_gpus"),
        (("--logging_level", "LOUD"), "--logging_level"),
    ],
    ids=lambda words: words if isinstance(words, str) else " ".join(words),
)
def test_error_speaks_in_the_name_that_was_typed(drpo: Drpo, folder: Path, typed: tuple[str, ...], told: str) -> None:
    (folder / "cache.txt").write_text("none")
    outcome = drpo("optimize", "--model", "openai:world", "--display", "none", *typed)
    assert_one_line(outcome, 2, told)
    assert "num_queries" not in outcome.err
    assert "--num-queries" not in outcome.err
    assert "critic.model" not in outcome.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"num_training_examples": 0}, "num_training_examples"),
        ({"temperature": 9}, "temperature"),
        ({"is_GPT": "yes"}, "is_GPT"),
        ({"num_gpus": 0}, "num_gpus"),
        ({"num_gpus": True}, "num_gpus"),
        ({"logging_level": "LOUD"}, "logging_level"),
        ({"disable_log": "no"}, "disable_log"),
        ({"data_dir": 3}, "data_dir"),
        ({"data_dir": "nowhere"}, "data_dir: there is no nowhere"),
        ({"metrics_cache_path": "nowhere.json"}, "metrics_cache_path: there is no file nowhere.json"),
    ],
    ids=str,
)
def test_error_of_a_file_speaks_in_its_name(drpo: Drpo, folder: Path, content: dict[str, object], told: str) -> None:
    (folder / "run.json").write_text(json.dumps(content))
    outcome = drpo("optimize", "--model", "openai:world", "--config", "run.json", "--display", "none")
    assert_one_line(outcome, 2, "run.json", told)
    assert "num_queries" not in outcome.err


@pytest.mark.parametrize(("word", "form"), [("True", "chat"), ("false", "flat"), (True, "chat")])
def test_truth_in_a_file_may_be_the_published_command_line_s_word(word: object, form: str) -> None:
    assert build_settings({"is_GPT": word}).base.prompt_format == form


@pytest.mark.parametrize("form", ["flags", "file"])
def test_a_published_command_means_here_what_it_meant(drpo: Drpo, folder: Path, form: str) -> None:
    (folder / "cache.json").write_text("{}")
    (folder / "data").mkdir()
    (folder / "data" / "alpaca_train.json").write_text(json.dumps([{"instruction": f"Do {n}."} for n in range(9)]))
    values: dict[str, object] = {
        **{f"{name}_model_name": f"openai:{name}" for name in ("base", "metrics", "eval", "optimize")},
        "initial_system_prompt": "Be brief.",
        "n_actions": 3,
        "temperature": 0.3,
        "depth": 4,
        "max_depth_increase": 1,
        "beam_size": 2,
        "num_training_examples": 8,
        "is_GPT": True,
        "ret_icl": False,
        "k": 3,
        "base_model_family": "mistral",
        "metrics_cache_path": "cache.json",
        "data_dir": "data",
        "log_dir": "logs",
        "logging_level": "INFO",
        "disable_tqdm": True,
        "num_gpus": 1,
        "cuda_visible_devices": "0",
        "base_model_download_dir": "models",
    }
    (folder / "run.json").write_text(json.dumps(values))
    words = [f"--{name}={value}" for name, value in values.items()] if form == "flags" else ["--config", "run.json"]
    outcome = drpo("optimize", *words, "--display", "none")
    assert (outcome.code, "404" in outcome.err) == (1, True), outcome.err
    assert "num_gpus: not used, as no role has a model vllm:NAME" in outcome.err
    shown = json.loads(drpo("show", json.loads(drpo("runs", "--json").out)[0]["thread_id"], "--json").out)["run"]
    expected = build_settings(
        {
            "base_model": "openai:base",
            "metrics_model": "openai:metrics",
            "critic_model": "openai:eval",
            "optimizer_model": "openai:optimize",
            "initial_prompt": "Be brief.",
            "n_actions": 3,
            "depth": 4,
            "optimizer_temperature": 0.3,
            "max_depth_increase": 1,
            "beam_size": 2,
            "num_queries": 8,
            "k": 3,
            "base_prompt_format": "chat",
            "ret_icl": False,
            "metrics_cache": "cache.json",
        }
    )
    assert shown["settings"] == expected.model_dump(mode="json")
    assert shown["log_dir"] == "logs"


def test_flags_win_over_the_file(drpo: Drpo, folder: Path) -> None:
    (folder / "run.json").write_text('{"log_dir": "filed", "disable_tqdm": true, "temperature": 0.1}')
    words = ("--model", "openai:all", "--config", "run.json", "--log_dir", "flagged", "--temperature=0.4")
    assert settings_of(drpo, *words).optimizer.temperature == 0.4
    assert drpo("optimize", *words, "--display", "none").code == 1
    assert (folder / "flagged" / "log.txt").is_file()
    assert not (folder / "filed").exists()


def test_disabled_log_of_a_file_writes_no_folder(drpo: Drpo, folder: Path) -> None:
    (folder / "run.toml").write_text("disable_log = true\n")
    assert (
        drpo("optimize", *SMALL, "--depth", "2", "--config", "run.toml", "--thread-id", "t", "--display", "none").code
        == 0
    )
    assert not (folder / "drpo_runs" / "t").exists()


def test_gpu_names_start_and_shape_a_server() -> None:
    settings = build_settings({f"{role}_model": "vllm:org/m" for role in ROLES})
    published = Published(base_model_download_dir="my models", cuda_visible_devices="1,0", num_gpus=2)
    serving, note = shape_serving(Serving(serve_options="--dtype float16"), published, settings)
    assert note == ""
    assert serving.serve
    assert serving.serve_options == (
        "--download-dir 'my models' --cuda-visible-devices 1,0 --num-gpus 2 --dtype float16"
    )
    assert shape_serving(Serving(), Published(), settings) == (Serving(), "")
    own_server = build_settings({"model": "vllm:org/m", "base_url": "http://127.0.0.1:1/v1"})
    assert shape_serving(Serving(), published, own_server)[0] == Serving()


def test_file_is_read_once_for_settings_and_for_the_run(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"depth": 4, "log-dir": "logs", "num_gpus": 1}')
    sources = Sources(config=file)
    assert sources.file == {"depth": 4}
    file.unlink()
    assert sources.run_values == {"log_dir": "logs", "num_gpus": 1}


def test_log_holds_responses_and_rewards_and_nothing_else_does(
    drpo: Drpo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    monkeypatch.setattr(logging.root, "handlers", [handler])
    assert drpo("optimize", *SMALL, "--thread-id", "t", "--display", "none").code == 0
    tree = json.loads((folder / "drpo_runs" / "t" / "algo_output" / "tree.json").read_text())
    log = (folder / "drpo_runs" / "t" / "log.txt").read_text()
    rollouts = [one for candidate in tree for one in candidate["rollouts"]]
    assert len(rollouts) > 5
    for one in rollouts:
        line = next(
            line for line in log.splitlines() if f": {one['candidate_id']} on {one['query_id']}: reward " in line
        )
        assert f"reward {one['reward']:.2f} (" in line
        assert all(f"{score['metric']} {score['score']}" in line for score in one["critique"]["scores"])
        assert " ".join(one["response"].split()[:3]) in line
    assert [record for record in seen if record.getMessage().startswith("level 1 of ")]
    assert not [record for record in seen if "response:" in record.getMessage()]
