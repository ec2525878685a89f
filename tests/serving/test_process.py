"""A server's start, its readiness, its end: with all it has started, and whatever becomes of this process."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.errors import ServeError
from drpo_graph.serving.arguments import ServeOptions
from drpo_graph.serving.plan import plan_server
from drpo_graph.serving.process import Server, start_server
from tests.serving.stubs import PYTHON_PATH, are_gone, command_lines, free_port, is_running, read_record
from tests.support.command import wait_for

KEY = "key-of-the-server"


def ignore(elapsed_s: float, line: str) -> None:
    pass


class Starter:
    """Starts stubs in a folder, and ends what a test left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record_file = folder / "record"
        self.servers: list[Server] = []

    def __call__(self, *arguments: str, grace_s: float = 5.0, **environment: str) -> Server:
        """Start a stub."""
        options = ServeOptions(model="org/model", port=free_port(), vllm_arguments=arguments)
        inherited = {**os.environ, "PYTHONPATH": PYTHON_PATH, "STUB_RECORD": str(self.record_file), **environment}
        plan = plan_server(
            options, python=Path(sys.executable), log_file=self.folder / "logs" / "log", inherited=inherited
        )
        self.servers.append(start_server(plan, KEY, grace_s=grace_s))
        return self.servers[-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    for server in starter.servers:
        server.kill()
        server.stop()


def test_a_ready_server_answers_under_its_name_and_the_key_is_in_no_command_line(start: Starter) -> None:
    seen: list[tuple[float, str]] = []
    server = start(
        "--enforce-eager", STUB_DELAY_S="0.4", STUB_WORKER="1", HF_TOKEN="t", HTTPS_PROXY="http://no.where:1"
    )
    server.wait_until_ready(timeout_s=20, report=lambda elapsed_s, line: seen.append((elapsed_s, line)))
    record = read_record(start.record_file)
    assert record.key == KEY
    assert record.argv[-1] == "--enforce-eager"
    assert record.environment == {"CUDA_VISIBLE_DEVICES": None, "HF_TOKEN": "t", "HTTPS_PROXY": "http://no.where:1"}
    assert seen == sorted(seen)
    assert "INFO: loading part 29" in {line for _, line in seen}
    lines = command_lines([*record.pids, os.getpid()])
    assert "api_server" in lines
    assert KEY not in lines
    assert server.plan.log_file.stat().st_mode & 0o777 == 0o600
    server.check()


@pytest.mark.parametrize("worker", ["", "1"])
def test_stop_ends_everything_that_was_started(worker: str, start: Starter) -> None:
    server = start(STUB_WORKER=worker)
    server.wait_until_ready(timeout_s=20, report=ignore)
    record = read_record(start.record_file)
    assert all(map(is_running, record.pids))
    server.stop()
    assert are_gone(record)
    # It ended because it was told to: that is no failure.
    server.check()
    server.stop()


def test_a_server_that_ignores_sigterm_is_killed_after_its_time_of_grace(start: Starter) -> None:
    server = start(STUB_STUBBORN="1", grace_s=0.3)
    server.wait_until_ready(timeout_s=20, report=ignore)
    record = read_record(start.record_file)
    server.stop()
    assert are_gone(record)


def test_kill_does_not_wait(start: Starter) -> None:
    server = start(STUB_STUBBORN="1", STUB_WORKER="1", grace_s=60.0)
    record = read_record(start.record_file)
    began = time.monotonic()
    server.kill()
    server.stop()
    assert are_gone(record)
    assert time.monotonic() - began < 5


def test_nothing_stays_when_the_guard_is_killed(start: Starter) -> None:
    server = start(STUB_WORKER="1")
    server.wait_until_ready(timeout_s=20, report=ignore)
    record = read_record(start.record_file)
    os.kill(record.pids[1], signal.SIGKILL)
    with pytest.raises(ServeError, match="guard was killed"):
        server.check(wait_s=20)
    server.stop()
    wait_for(lambda: are_gone(record))


def test_a_server_that_ends_early_is_told_with_its_last_lines(start: Starter) -> None:
    server = start(STUB_FAIL="ValueError: \x1b[31mnobody knows\x1b[0m this one", STUB_WORKER="")
    with pytest.raises(ServeError) as caught:
        server.wait_until_ready(timeout_s=20, report=ignore)
    first, *lines = str(caught.value).split("\n")
    reason = "It ended by itself (exit code 1); its log may say why."
    assert first == f"The server of org/model: {reason} Log: {server.plan.log_file}"
    assert lines == [f"  INFO: loading part {n}" for n in range(11, 30)] + ["  ValueError: nobody knows this one"]


def test_a_server_that_dies_later_is_told(start: Starter) -> None:
    alive = start.folder / "alive"
    alive.touch()
    server = start(STUB_DIES_WITH=str(alive), STUB_WORKER="1")
    server.wait_until_ready(timeout_s=20, report=ignore)
    alive.unlink()
    with pytest.raises(ServeError, match="GPU's memory is too small"):
        server.check(wait_s=20)
    wait_for(lambda: are_gone(read_record(start.record_file)))


def test_a_log_file_is_added_to_and_only_the_new_part_is_told(start: Starter) -> None:
    log_file = start.folder / "logs" / "log"
    log_file.parent.mkdir()
    log_file.write_text("CUDA out of memory\n")
    server = start(STUB_FAIL="No available memory for the cache blocks")
    with pytest.raises(ServeError, match="KV cache"):
        server.wait_until_ready(timeout_s=20, report=ignore)
    assert log_file.read_text().startswith("CUDA out of memory\nINFO")


def test_a_log_file_that_is_a_link_is_not_written_through(start: Starter) -> None:
    (start.folder / "precious").write_text("keep")
    (start.folder / "logs").mkdir()
    (start.folder / "logs" / "log").symlink_to(start.folder / "precious")
    with pytest.raises(ServeError, match=r"log is a link.*--log-file"):
        start()
    assert (start.folder / "precious").read_text() == "keep"


def test_waiting_has_an_end(start: Starter) -> None:
    server = start(STUB_DELAY_S="60")
    with pytest.raises(ServeError, match=r"not ready after 0\.3 s; --timeout"):
        server.wait_until_ready(timeout_s=0.3, report=ignore)


def test_a_taken_port_is_told_before_anything_starts(start: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with pytest.raises(ServeError, match=rf"Port {port} of 127\.0\.0\.1: Address already in use.*--port"):
            start("--port", port)
    assert not start.record_file.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a bound port")
def test_a_port_that_was_found_is_given_to_no_one_else_and_can_be_listened_on() -> None:
    port = free_port()
    with pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind(("127.0.0.1", port))  # As a program binds that does not know of it.
    for _ in range(2):  # A server that has ended can be started again.
        with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            pass
    assert port not in {free_port() for _ in range(50)}


def test_another_model_under_the_url_is_told(start: Starter) -> None:
    server = start()
    object.__setattr__(server.plan, "model", "other")
    with pytest.raises(ServeError, match="It serves org/model, not other"):
        server.wait_until_ready(timeout_s=20, report=ignore)


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "~/no-such-folder"])
def test_a_path_that_leads_nowhere_is_told_before_anything_starts(model: str, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=f"There is no model {model}"):
        plan_server(
            ServeOptions(model=model), python=Path(sys.executable), log_file=tmp_path / "log", inherited=os.environ
        )
