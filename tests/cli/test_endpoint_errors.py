"""A model endpoint that cannot be used: one line that says which, why and what to do; the run can be resumed."""

import socket
from pathlib import Path

import pytest

from drpo_graph.records import RunResult
from tests.support.command import KEY, SMALL, Drpo, assert_one_line, list_runs, read_result, serve
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.oracle import build_responder

START = ("optimize", *SMALL, "--thread-id", "t", "--display", "none")


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_an_unknown_model_is_named_with_its_role_and_place(drpo: Drpo, world: FakeServer) -> None:
    outcome = drpo(*START, "--critic-model", "openai:wrold")
    assert_one_line(outcome, 1, "critic model 'openai:wrold'", world.base_url, "404", "does not exist", "name")
    assert "drpo resume t" in outcome.err
    assert list_runs(drpo) == {"t": "failed"}


def test_a_wrong_key_is_told_without_showing_it_and_the_run_goes_on_with_the_right_one(
    drpo: Drpo, folder: Path, monkeypatch: pytest.MonkeyPatch, unbroken: RunResult
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-0123456789")
    outcome = drpo(*START)
    assert_one_line(outcome, 1, "401", "API key", "drpo resume t")
    assert "0123456789" not in outcome.err
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert drpo("resume", "t", "--display", "none").code == 0
    assert read_result(folder / "drpo_runs") == unbroken
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert KEY.encode() not in written
    assert b"0123456789" not in written


def test_an_unreachable_server_is_told_and_the_run_goes_on_where_it_is_reachable(
    drpo: Drpo, folder: Path, world: FakeServer, unbroken: RunResult
) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    outcome = drpo(*START, "--base-url", url, "--set", "max_retries=0")
    assert_one_line(outcome, 1, url, "base model", "cannot be reached", "it runs", "drpo resume t")
    moved = [part for role in ("base", "metrics", "critic", "optimizer") for part in ("--set", f"{role}.base_url=")]
    moved = [f"{part}{world.base_url}" if part.endswith("=") else part for part in moved]
    assert drpo("resume", "t", "--display", "none", *moved).code == 0
    assert read_result(folder / "drpo_runs") == unbroken


def test_a_failed_run_shows_its_reason_once_on_the_plain_display(drpo: Drpo) -> None:
    outcome = drpo(*START, "--model", "openai:wrold", "--display", "plain")
    assert outcome.code == 1
    assert outcome.err == ""
    assert outcome.out.count("does not exist") == 1
    assert "resume with: drpo resume t\n" in outcome.out
    status = drpo("show", "t")
    assert "failed: " in status.out
    assert "does not exist" in status.out
    assert "drpo resume t" in status.out


def test_a_context_too_small_for_the_prompts_is_one_line_with_both_numbers(drpo: Drpo) -> None:
    with serve(build_responder(), ServerOptions(server="vllm", tokenizes="vllm", max_model_len=400)) as server:
        outcome = drpo(*START, "--base-url", server.base_url)
    assert_one_line(outcome, 1, "the prompt has", "the model's context 400)", "with a longer context")
    assert "…" not in outcome.err
