"""``drpo serve`` and ``--serve``: a stub stands for vLLM; what is started is stopped, whatever happens."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.serving.stubs import PYTHON_PATH, Record, are_gone, command_lines, environments, free_port, read_record
from tests.support.command import (
    KEY,
    SMALL,
    Drpo,
    Outcome,
    assert_one_line,
    finish,
    list_runs,
    read_result,
    spawn_drpo,
    wait_for,
)
from tests.support.fake_server import FakeServer, read_log

RUN = ("--model", "vllm:world", *SMALL[2:], "--thread-id", "t")
STOPS = [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGHUP))]


@pytest.fixture(autouse=True)
def stub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lead to the stub; return the file that it is recorded in."""
    monkeypatch.setenv("PYTHONPATH", PYTHON_PATH)
    monkeypatch.setenv("STUB_RECORD", str(folder / "record"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    return folder / "record"


def spawn(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return spawn_drpo(*arguments, folder=Path.cwd(), environment={"PYTHONPATH": PYTHON_PATH, **environment})


def read_until(process: subprocess.Popen[str], end: str) -> list[str]:
    """Return the lines on stdout, up to one that begins so."""
    lines: list[str] = []
    assert process.stdout is not None
    while not lines or not lines[-1].startswith(end):
        line = process.stdout.readline()
        assert line, (lines, process.communicate())
        lines.append(line.rstrip("\n"))
    return lines


def serve(*arguments: str | Path, **environment: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """Start a server; return its process, and what it says when it is ready."""
    process = spawn("serve", "org/model", "--port", str(free_port()), *arguments, **environment)
    lines = read_until(process, "Ctrl-C")
    return process, dict(line.split(": ", 1) for line in lines[:-1])


@pytest.mark.parametrize("number", STOPS)
def test_a_served_model_is_described_guarded_and_stopped(number: signal.Signals, stub: Path) -> None:
    process, said = serve(
        "--dtype", "float32", "--num-gpus", "2", "--cuda-visible-devices", "1,0", "--", "--enforce-eager"
    )
    record, key, log = read_record(stub), Path(said["key"]), Path(said["log"])
    assert record.argv[-1] == "--enforce-eager"
    assert "--dtype float32 --tensor-parallel-size 2" in " ".join(record.argv)
    assert record.environment["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert key.read_text() == f"{record.key}\n"
    assert [path.stat().st_mode & 0o777 for path in (key, log)] == [0o600, 0o600]
    assert key.parent.relative_to(Path.cwd()) == log.parent == Path("drpo_runs/serve")
    assert record.key not in command_lines([process.pid, *record.pids])
    assert record.key not in " ".join(said.values())
    assert record.key not in log.read_text()
    process.send_signal(number)
    outcome = finish(process)
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err_lines == ["starting org/model", "stopping the server; Ctrl-C again kills it"]
    assert are_gone(record)
    assert not key.exists()
    assert log.exists()


@pytest.mark.slow
def test_a_killed_command_takes_its_server_along(stub: Path) -> None:
    process, _ = serve(STUB_WORKER="1")
    record = read_record(stub)
    process.kill()
    process.communicate()
    wait_for(lambda: are_gone(record))


def test_the_second_signal_kills_a_server_that_will_not_stop(stub: Path) -> None:
    process, _ = serve(STUB_STUBBORN="1", STUB_WORKER="1")
    record = read_record(stub)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("stopping"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process, timeout_s=10).code == 0
    assert are_gone(record)


def test_a_start_can_be_interrupted(stub: Path) -> None:
    process = spawn("serve", "org/model", "--port", str(free_port()), STUB_DELAY_S="60")
    record = read_record(stub)
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.out, outcome.err_lines[-1]) == (130, "", "interrupted")
    assert are_gone(record)


def test_a_failed_start_is_one_line_and_the_end_of_the_log(
    drpo: Drpo, monkeypatch: pytest.MonkeyPatch, stub: Path
) -> None:
    monkeypatch.setenv("STUB_FAIL", "OSError: You are trying to access a gated repo.")
    outcome = drpo("serve", "org/model", "--port", str(free_port()))
    starting, error, *lines = outcome.err_lines
    assert (outcome.code, outcome.out, starting) == (1, "", "starting org/model")
    assert error.startswith("error: The server of org/model: org/model is gated: accept its licence")
    assert "HF_TOKEN" in error
    assert len(lines) == 20
    assert lines[-1] == "  OSError: You are trying to access a gated repo."
    assert list(Path("drpo_runs/serve").glob("*.key")) == []
    assert are_gone(read_record(stub))


def test_a_server_that_dies_later_ends_the_command(stub: Path) -> None:
    alive = Path("alive")
    alive.touch()
    process, _ = serve(STUB_DIES_WITH=str(alive))
    alive.unlink()
    outcome = finish(process)
    assert outcome.code == 1
    assert outcome.err_lines[1].startswith("error: The server of org/model: The GPU's memory is too small.")


@pytest.mark.parametrize(
    ("arguments", "name", "use"),
    [
        (("--api-key-env", "MY_KEY"), "environment variable MY_KEY", 'VLLM_API_KEY="$MY_KEY" drpo'),
        (("--api-key-env", "VLLM_API_KEY"), "environment variable VLLM_API_KEY", "/v1 drpo"),
        (("--api-key-file", "my.key"), "my.key", 'my.key)" drpo'),
    ],
)
def test_the_users_own_key_is_used_and_kept(arguments: tuple[str, ...], name: str, use: str, stub: Path) -> None:
    Path("my.key").write_text("my-own-key\n")
    process, said = serve(*arguments, MY_KEY="my-own-key", VLLM_API_KEY="my-own-key")
    process.terminate()
    assert finish(process).code == 0
    assert read_record(stub).key == "my-own-key"
    assert said["key"].endswith(name)
    assert use in said["use it"]
    assert Path("my.key").exists()


def test_the_command_that_is_offered_hands_over_url_and_key(stub: Path) -> None:
    process, said = serve("--served-model-name", "a name")
    assert said["use it"].endswith(" drpo optimize --model 'vllm:a name'")
    command = said["use it"].replace("drpo optimize", "printenv VLLM_BASE_URL VLLM_API_KEY; true", 1)
    printed = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout
    process.terminate()
    assert finish(process).code == 0
    record = read_record(stub)
    assert printed.splitlines() == [f"http://127.0.0.1:{record.port}/v1", record.key]


USAGE = {
    "a second model": (("serve", "a", "b"), ("'b'", "one model")),
    "a key in view": (("serve", "a", "--", "--api-key", "k"), ("--api-key-env",)),
    "two keys": (("serve", "a", "--api-key-env", "K", "--api-key-file", "k"), ("give one",)),
    "options without a server": (("optimize", *RUN, "--serve-options", "--port 1"), ("give both",)),
    "options that are none": (("optimize", *RUN, "--serve", "--serve-options", "--frob 1"), ("--frob", "drpo serve")),
    "an open quote": (("optimize", *RUN, "--serve", "--serve-options", "'"), ("--serve-options",)),
    "another name": (("optimize", *RUN, "--serve", "--serve-options", "--served-model-name x"), ("'world'",)),
    "nothing to serve": (("optimize", "--model", "openai:world", "--serve"), ("--serve", "vllm:NAME")),
    "a url of its own": (("optimize", *RUN, "--serve", "--base-url", "http://127.0.0.1:1/v1"), ("base URL",)),
    "two to serve": (
        ("optimize", *RUN, "--critic-model", "vllm:other", "--serve"),
        ("vllm:other, vllm:world", "critic.base_url"),
    ),
    "no key where one is named": (("optimize", *RUN, "--serve", "--api-key-env", "NOPE"), ("NOPE",)),
    "another role's model": (("optimize", *RUN, "--critic-model", "nonsense", "--serve"), ("'nonsense'",)),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "parts"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_told_before_anything_starts(
    arguments: tuple[str, ...], parts: tuple[str, ...], drpo: Drpo, folder: Path
) -> None:
    assert_one_line(drpo(*arguments), 2, *parts)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("display", "key"), [("jsonl", None), ("none", "my-own-key")])
def test_a_run_with_its_own_server_equals_one_against_a_url(
    display: str, key: str | None, drpo: Drpo, world: FakeServer, monkeypatch: pytest.MonkeyPatch, stub: Path
) -> None:
    monkeypatch.setenv("STUB_LATENCY_S", "0")
    if key is not None:
        monkeypatch.setenv("VLLM_API_KEY", key)
    outcome = drpo("optimize", *RUN, "--serve", "--serve-options", "--num-gpus 2 -- --seed 1", "--display", display)
    assert outcome.code == 0, outcome.err
    assert outcome.err_lines == (["starting world"] if display == "jsonl" else [])
    assert [event.type for event in outcome.events()][-1:] == (["run_finished"] if display == "jsonl" else [])
    record = read_record(stub)
    assert are_gone(record)
    assert "--tensor-parallel-size 2" in " ".join(record.argv)
    assert record.argv[-2:] == ["--seed", "1"]
    assert record.key not in "".join(path.read_text(errors="replace") for path in Path("drpo_runs/t").rglob("*.*"))
    assert key in (None, record.key)
    assert os.environ.get("VLLM_API_KEY") == key
    assert "VLLM_BASE_URL" not in os.environ
    served = read_result(Path("drpo_runs"))
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    plain = ("--base-url", world.base_url, "--checkpoint", "plain/c.sqlite", "--display", "none")
    assert drpo("optimize", *RUN, *plain).code == 0
    assert read_result(Path("plain")) == served


def test_a_run_over_examples_has_a_server_of_its_own_too(
    drpo: Drpo, monkeypatch: pytest.MonkeyPatch, stub: Path
) -> None:
    monkeypatch.setenv("STUB_LATENCY_S", "0")
    run = ("icl", "--model", "vllm:world", "--num-examples", "1", "--num-iters", "1", "--thread-id", "t")
    outcome = drpo(*run, "--serve", "--display", "plain")
    assert outcome.code == 0, outcome.err
    assert are_gone(read_record(stub))
    stub.unlink()
    # Refused before a server is started.
    assert_one_line(drpo(*run, "--serve"), 2, "exists already")
    assert not stub.exists()


def test_a_key_that_a_role_names_is_the_servers(drpo: Drpo, monkeypatch: pytest.MonkeyPatch, stub: Path) -> None:
    monkeypatch.setenv("STUB_FAIL", "No available memory for the cache blocks")
    monkeypatch.setenv("MY_KEY", "my-own-key")
    assert drpo("optimize", *RUN, "--api-key-env", "MY_KEY", "--serve").code == 1
    assert read_record(stub).key == "my-own-key"
    assert "VLLM_API_KEY" not in os.environ


@pytest.mark.slow
def test_no_process_of_a_server_is_given_the_keys_of_others(stub: Path) -> None:
    names = ("OPENAI_API_KEY", "PGPASSWORD", "SOME_TOKEN", "LANGGRAPH_AES_KEY", "DRPO_ENCRYPTION_KEY")
    canaries = {name: f"canary-{name}" for name in names}
    own = {"OF_THE_SERVER": "key-of-the-server", "HF_TOKEN": "handed-on", "STUB_WORKER": "1"}
    process, _ = serve("--api-key-env", "OF_THE_SERVER", **own, **canaries)
    record = read_record(stub)
    seen = environments(record.pids)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert len(record.pids) == 3
    assert [seen.count(text) for text in ("HF_TOKEN=handed-on", "VLLM_API_KEY=key-of-the-server")] == [3, 3]
    assert "canary" not in seen
    assert "OF_THE_SERVER" not in seen


@pytest.mark.slow
def test_a_run_s_own_server_is_not_given_the_keys_of_its_roles(world: FakeServer) -> None:
    critic = {"model": "openai:world", "base_url": world.base_url, "api_key_env": "OF_THE_CRITIC"}
    chosen = [word for name, value in critic.items() for word in ("--set", f"critic.{name}={value}")]
    process, record, _ = begin_served_run(*chosen, OF_THE_CRITIC=KEY, OPENAI_API_KEY=KEY)
    seen = environments(record.pids)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert "VLLM_API_KEY=" in seen
    assert "OF_THE_CRITIC" not in seen
    assert KEY not in seen


def test_different_keys_for_one_server_are_refused(drpo: Drpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "one")
    monkeypatch.setenv("MY_KEY", "two")
    outcome = drpo("optimize", *RUN, "--set", "critic.api_key_env=MY_KEY", "--serve")
    assert_one_line(outcome, 2, "server takes one key", "MY_KEY, VLLM_API_KEY hold different")


def begin_served_run(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], Record, Path]:
    """Start a run with its own slow server; return when it has answered some calls."""
    calls = Path("calls").absolute()
    environment = {"STUB_LATENCY_S": "0.2", "STUB_CALLS": str(calls), **environment}
    process = spawn("optimize", *RUN, "--serve", "--display", "none", *arguments, **environment)
    wait_for(lambda: process.poll() is not None or (calls.exists() and calls.read_text().count("\n") >= 6))
    assert process.poll() is None, process.communicate()
    return process, read_record(Path("record")), calls


@pytest.mark.slow
def test_an_interrupted_run_drains_before_its_server_stops(
    drpo: Drpo, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, record, calls = begin_served_run()
    # The terminal's Ctrl-C reaches the command's process group, and these are in others.
    assert os.getpgid(process.pid) not in {os.getpgid(pid) for pid in record.pids}
    process.send_signal(signal.SIGINT)
    outcome: Outcome = finish(process)
    assert outcome.code == 130
    assert "drpo resume t --serve" in outcome.err
    log = read_log(calls)
    assert sum(entry["event"] == "start" for entry in log) == sum(entry.get("status") == 200 for entry in log)
    assert are_gone(record)
    assert "shutdown complete" in next(Path("drpo_runs/serve").glob("*-world.log")).read_text()
    assert list_runs(drpo) == {"t": "interrupted"}
    stub.unlink()
    monkeypatch.setenv("STUB_LATENCY_S", "0")
    monkeypatch.setenv("STUB_CALLS", str(calls))
    assert drpo("resume", "t", "--serve", "--display", "none").code == 0
    assert are_gone(read_record(stub))
    keys = [entry["key"] for entry in read_log(calls) if entry.get("status") == 200]
    assert len(keys) == len(set(keys))
    stub.unlink()
    # What is finished is shown again, and nothing is started for it.
    assert drpo("resume", "t", "--serve", "--display", "none").code == 0
    assert not stub.exists()
    assert_one_line(drpo("optimize", *RUN, "--serve"), 2, "'t' exists already")
    assert not stub.exists()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--set", "max_retries=0"), ("--max-outage", "3600"), ()])
def test_a_server_that_dies_under_a_run_is_told_and_not_waited_for(arguments: tuple[str, ...], drpo: Drpo) -> None:
    alive = Path("alive").absolute()
    alive.touch()
    process, record, _ = begin_served_run(*arguments, STUB_DIES_WITH=str(alive))
    alive.unlink()
    outcome = finish(process)
    assert outcome.code == 1
    failed, error, *lines = outcome.err_lines
    assert failed.startswith("failed: ")
    assert failed.endswith("drpo resume t --serve")
    assert error.startswith("error: The server of world: The GPU's memory is too small.")
    assert lines
    assert lines[-1].startswith("  torch.OutOfMemoryError")
    assert are_gone(record)
    settings = json.loads(drpo("show", "t", "--json").out)["run"]["settings"]
    assert settings["max_outage_s"] == (3600 if "--max-outage" in arguments else 600)
