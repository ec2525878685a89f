"""The published names of GPUs, end to end: they start a server, shape it, and it ends with the run."""

import json
import shlex
from pathlib import Path

import pytest

from tests.cli.test_serve import RUN
from tests.serving.stubs import PYTHON_PATH, are_gone, free_port, read_record
from tests.support.command import MODEL, SMALL, Drpo, assert_one_line, read_result

GIVEN = {"base_model_download_dir": "my models", "cuda_visible_devices": "1,0", "num_gpus": "2"}
HYPHENS = {name.replace("_", "-"): value for name, value in GIVEN.items()}
CALM = ("--display", "plain")


@pytest.fixture(autouse=True)
def stub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lead to the stub of vLLM, which answers as the world does; return the file that it is recorded in."""
    monkeypatch.setenv("PYTHONPATH", PYTHON_PATH)
    monkeypatch.setenv("STUB_RECORD", str(folder / "record"))
    monkeypatch.setenv("STUB_LATENCY_S", "0")
    for name in ("VLLM_API_KEY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return folder / "record"


def option_of(argv: list[str], flag: str) -> str | None:
    """Return what a server is given for a flag."""
    return argv[argv.index(flag) + 1] if flag in argv else None


FORMS = {
    "underscores": [f"--{name}={value}" for name, value in GIVEN.items()],
    "hyphens": [word for name, value in HYPHENS.items() for word in (f"--{name}", value)],
    "with --serve=True": ["--serve=True", *(f"--{name}={value}" for name, value in GIVEN.items())],
    "TOML": ['base_model_download_dir = "my models"', 'cuda_visible_devices = "1,0"', "num_gpus = 2"],
    "JSON": [json.dumps({**HYPHENS, "num-gpus": 2})],
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_shapes_the_same_server(
    form: str, drpo: Drpo, folder: Path, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FAIL", "No available memory for the cache blocks")
    words = FORMS[form]
    if form in ("TOML", "JSON"):
        file = folder / f"run.{form.lower()}"
        file.write_text("\n".join(words))
        words = ["--config", file.name]
    outcome = drpo("optimize", *RUN, *words, *CALM)
    assert (outcome.code, outcome.err_lines[0]) == (1, "starting world"), outcome.err
    record = read_record(stub)
    assert record.environment["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert option_of(record.argv, "--tensor-parallel-size") == "2"
    assert option_of(record.argv, "--download-dir") == "my models"
    assert are_gone(record)


def test_our_own_words_win_over_the_published_names(drpo: Drpo, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_FAIL", "No available memory for the cache blocks")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    drpo("optimize", *RUN, "--num_gpus=2", "--serve_options", "--num-gpus 4 -- --seed 1", *CALM)
    record = read_record(stub)
    assert option_of(record.argv, "--tensor-parallel-size") == "4"
    assert record.argv[-2:] == ["--seed", "1"]
    assert record.environment["CUDA_VISIBLE_DEVICES"] == "7"


def test_run_ends_well_and_the_printed_command_serves_the_same_again(drpo: Drpo, folder: Path, stub: Path) -> None:
    (folder / "run.json").write_text(json.dumps(GIVEN | {"num_gpus": 2}))
    stopped = drpo("optimize", *RUN, "--config", "run.json", "--max-calls", "5", *CALM)
    assert stopped.code == 3, stopped.err
    first = read_record(stub)
    assert are_gone(first)
    stub.unlink()
    (line,) = [one for one in stopped.out.splitlines() if one.startswith("resume with: ")]
    command = shlex.split(line.removeprefix("resume with: "))
    assert "--serve" in command
    resumed = drpo(*command[1:], "--max-calls", "500", *CALM)
    assert resumed.code == 0, resumed.err
    second = read_record(stub)
    assert are_gone(second)
    assert second.environment == first.environment
    assert [one for one in second.argv if one != str(second.port)] == [
        one for one in first.argv if one != str(first.port)
    ]
    # Its server has gone: what asks the model is not offered.
    assert "drpo generate" not in resumed.out
    assert "drpo export t" in resumed.out
    assert read_result(folder / "drpo_runs").status == "done"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--num_gpus", "0"), "'--num_gpus'"),
        (("--num-gpus", "two"), "'--num-gpus'"),
        (("--num_gpus=2.5",), "'--num_gpus'"),
        (("--num_gpus",), "'--num_gpus'"),
        (("--cuda-visible-devices",), "'--cuda-visible-devices'"),
        (("--base_model_download_dir",), "'--base_model_download_dir'"),
        (("--num_gpus=1", "--critic-model", "vllm:other"), "vllm:other, vllm:world"),
    ],
    ids=lambda words: words if isinstance(words, str) else " ".join(words),
)
def test_error_speaks_in_the_name_that_was_typed(words: tuple[str, ...], told: str, drpo: Drpo, stub: Path) -> None:
    outcome = drpo("optimize", *RUN, *words)
    assert_one_line(outcome, 2, told)
    assert "--serve" not in outcome.err
    assert "--download-dir" not in outcome.err
    assert not stub.exists()


@pytest.mark.parametrize("sign", ["_", "-"])
@pytest.mark.parametrize(
    "model", [MODEL, ("--model", "vllm:world", "--set", "base_url=URL")], ids=["an API", "a server of its own"]
)
def test_with_a_model_that_is_served_elsewhere_they_are_noted_and_start_nothing(
    sign: str, model: tuple[str, ...], drpo: Drpo, stub: Path
) -> None:
    words = (f"--{name.replace('_', sign)}={value}" for name, value in GIVEN.items())
    model = tuple(one.replace("URL", "http://127.0.0.1:1/v1") for one in model)
    outcome = drpo("optimize", *model, *SMALL[2:], "--dry-run", *words, "--base_model_family=mistral", *CALM)
    assert outcome.code == 0, outcome.err
    assert outcome.err_lines == [
        "note: base_model_family: not needed, as the server knows its model's chat template.",
        f"note: {', '.join(GIVEN)}: not used, as no role has a model vllm:NAME without a base URL.",
    ]
    assert not stub.exists()


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        (("icl", "--num-examples", "1"), "num_gpus"),
        (("oirl", "collect", "--num-queries", "1"), "num_gpus"),
        (("resume", "t"), "num_gpus"),
        # The folder in a file may be that of the former run, which stays as it is.
        (("fork", "t", "--level", "0"), "log_dir, num_gpus"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_command_that_starts_no_server_for_them_says_so_and_takes_the_rest(
    command: tuple[str, ...], unused: str, drpo: Drpo, folder: Path, stub: Path
) -> None:
    assert drpo("optimize", *SMALL, "--thread-id", "t", "--max-calls", "12", *CALM).code == 3
    (folder / "run.json").write_text('{"num_gpus": 1, "log-dir": "filed"}')
    more = () if command[1] == "t" else (*MODEL, "--thread-id", "u")
    outcome = drpo(*command, *more, "--config", "run.json", "--max-calls", "3", "--display", "none")
    assert outcome.code == 3
    assert outcome.err_lines[0] == f"note: settings file run.json: {unused}: not used by this command."
    assert (folder / "filed" / "log.txt").is_file() == ("log_dir" not in unused)
    assert not stub.exists()


def test_serve_takes_them_under_their_names(drpo: Drpo, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_FAIL", "No available memory for the cache blocks")
    more = ("--gpu_memory_utilization=0.5", "--max_model_len=8k", "--dtype", "float16", "--port", str(free_port()))
    assert drpo("serve", "org/model", *FORMS["underscores"], *more).code == 1
    record = read_record(stub)
    assert record.environment["CUDA_VISIBLE_DEVICES"] == "1,0"
    wanted = {"--tensor-parallel-size": "2", "--download-dir": "my models", "--gpu-memory-utilization": "0.5"}
    wanted |= {"--max-model-len": "8k", "--dtype": "float16"}
    assert {flag: option_of(record.argv, flag) for flag in wanted} == wanted
    assert_one_line(drpo("serve", "org/model", "--num_gpus", "0"), 2, "'--num_gpus'")
    assert_one_line(drpo("serve", "org/model", "--base_model_download_dir"), 2, "'--base_model_download_dir'")
