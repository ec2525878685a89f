"""Encryption at rest: no byte that is stored holds a text, and nothing opens with another key or in another place."""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_graph.errors import CheckpointError, UsageError
from drpo_graph.events.log import open_event_line
from drpo_graph.events.schema import parse_event
from drpo_graph.safety.encryption import Vault, read_vault
from drpo_graph.storage.serializer import make_serializer
from tests.support.command import KEY, SMALL, Drpo, assert_one_line, enter, list_runs, serve_world
from tests.support.fake_server import FakeServer

CANARY = "canary-of-the-prompt"
QUERIES = "canary-query one?\ncanary-query two?\ncanary-query three?\ncanary-query four?\n"
PIECES = (b"canary", b"Clarity", b"rationale", b"assistant")
"""Of prompt, queries, critiques and settings."""
VAULT_KEY = secrets.token_hex(32)
START = ("optimize", "queries.txt", *SMALL, "--thread-id", "t", "--display", "none", "--initial-prompt", CANARY)
BASE = Path("drpo_runs") / "checkpoints.sqlite"


@pytest.fixture(scope="module")
def world() -> Iterator[FakeServer]:
    with serve_world() as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    enter(tmp_path, monkeypatch, world)
    monkeypatch.setenv("DRPO_ENCRYPTION_KEY", VAULT_KEY)
    (tmp_path / "queries.txt").write_text(QUERIES)
    return tmp_path


def found_in(folder: Path) -> set[bytes]:
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert files
    return {piece for piece in PIECES if any(piece in content for content in files)}


def test_an_encrypted_run_leaves_no_text_in_any_byte_and_can_be_read_and_resumed(
    drpo: Drpo, folder: Path, world: FakeServer
) -> None:
    outcome = drpo(*START)
    assert outcome.code == 0, outcome.err
    assert found_in(folder / "drpo_runs") == set()
    assert [path.name for path in (folder / "drpo_runs" / "t").iterdir()] == ["events.jsonl.sealed"]
    assert CANARY in drpo("show", "t", "--json").out
    kinds = [event.type for event in drpo("events", "t").events()]
    assert (kinds[0], kinds[-1]) == ("run_started", "run_finished")
    num_asked = len(world.log)
    assert drpo("resume", "t", "--display", "plain").code == 0
    assert len(world.log) == num_asked
    assert drpo("prune", "t").code == 0
    assert found_in(folder / "drpo_runs") == set()
    assert all(VAULT_KEY.encode() not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_run_that_fails_leaves_no_text_either(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START, "--optimizer-model", "openai:wrold", "--set", "probe=false").code == 1
    assert found_in(folder / "drpo_runs") == set()
    assert list_runs(drpo) == {"t": "failed"}


def test_a_run_that_its_budget_stops_leaves_no_text_either_and_goes_on(drpo: Drpo, folder: Path) -> None:
    outcome = drpo(*START, "--max-calls", "20")
    assert outcome.code == 3
    assert "Best so far" in outcome.err
    assert found_in(folder / "drpo_runs") == set()
    assert [path.name for path in (folder / "drpo_runs" / "t").iterdir()] == ["events.jsonl.sealed"]
    assert drpo("resume", "t", "--max-calls", "500", "--display", "none").code == 0
    assert found_in(folder / "drpo_runs") == set()


def test_without_a_key_the_pieces_are_found(drpo: Drpo, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRPO_ENCRYPTION_KEY")
    assert drpo(*START).code == 0
    assert found_in(folder / "drpo_runs") == set(PIECES)


def test_plain_files_are_written_where_they_are_asked_for(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START, "--plain-files").code == 0
    names = {path.name for path in (folder / "drpo_runs" / "t").iterdir()}
    assert {"best_prompt.txt", "result.json", "events.jsonl", "log.txt"} <= names
    assert b"canary" not in BASE.read_bytes()


def test_sealed_and_plain_events_are_read_in_the_order_of_time_and_exported(
    drpo: Drpo, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert drpo(*START, "--max-calls", "20").code == 3
    assert drpo("resume", "t", "--max-calls", "500", "--display", "none", "--plain-files").code == 0
    assert "not encrypted" not in caplog.text
    logs = [folder / "drpo_runs" / "t" / name for name in ("events.jsonl.sealed", "events.jsonl")]
    shown = drpo("events", "t")
    events = shown.events()
    assert len(events) == sum(len(log.read_text().splitlines()) for log in logs)
    assert [event.time for event in events] == sorted(event.time for event in events)
    kinds = [event.type for event in events if event.type.startswith("run_")]
    assert kinds == ["run_started", "run_stopped", "run_started", "run_finished"]
    # Files that are not encrypted are told where the run goes on as encrypted.
    assert drpo("resume", "t", "--display", "none").code == 0
    assert "t holds files of this run that are not encrypted: best_prompt.txt" in caplog.text
    outcome = drpo("export", "t", "--output", "out")
    assert f"{len(events) + 1} events" in outcome.out
    exported = (folder / "out" / "t" / "events.jsonl").read_text()
    assert exported.startswith(shown.out)
    assert exported == drpo("events", "t").out


def test_a_plain_line_in_a_sealed_log_is_not_shown(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START, "--depth", "2").code == 0
    log = folder / "drpo_runs" / "t" / "events.jsonl.sealed"
    shown = drpo("events", "t").out
    with log.open("a") as file:
        file.write(shown.splitlines()[0] + "\n")
    outcome = drpo("events", "t")
    assert outcome.out == shown
    assert "does not open" in outcome.err
    assert ", 1 did not open" in drpo("export", "t", "--output", "out").out


@pytest.mark.parametrize("command", [("resume", "t"), ("show", "t"), ("runs",), ("events", "t"), ("prune",), START])
@pytest.mark.parametrize(("key", "words"), [(None, "is encrypted. Set"), ("0" * 64, "with another key")])
def test_a_missing_or_wrong_key_is_one_line(
    drpo: Drpo, monkeypatch: pytest.MonkeyPatch, sealed: Path, command: tuple[str, ...], key: str | None, words: str
) -> None:
    monkeypatch.chdir(sealed)
    monkeypatch.delenv("DRPO_ENCRYPTION_KEY") if key is None else monkeypatch.setenv("DRPO_ENCRYPTION_KEY", key)
    assert_one_line(drpo(*command), 1, "Checkpoint", words, "DRPO_ENCRYPTION_KEY")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, world: FakeServer) -> Path:
    """A folder with an encrypted, finished run."""
    from drpo_graph.cli.app import _run

    folder = tmp_path_factory.mktemp("sealed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in (
            ("OPENAI_API_KEY", KEY),
            ("OPENAI_BASE_URL", world.base_url),
            ("DRPO_ENCRYPTION_KEY", VAULT_KEY),
        ):
            patch.setenv(name, value)
        (folder / "queries.txt").write_text(QUERIES)
        assert _run([*START, "--depth", "2"], is_debug=False) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("DRPO_ENCRYPTION_KEY", "", "64 hexadecimal digits"),
        ("DRPO_ENCRYPTION_KEY", "correct horse battery", "64 hexadecimal digits"),
        ("LANGGRAPH_AES_KEY", "short", "16, 24 or 32 characters"),
    ],
)
def test_a_key_of_another_form_is_refused_and_not_repeated(
    drpo: Drpo, monkeypatch: pytest.MonkeyPatch, name: str, key: str, words: str
) -> None:
    monkeypatch.delenv("DRPO_ENCRYPTION_KEY")
    monkeypatch.setenv(name, key)
    outcome = drpo(*START)
    assert_one_line(outcome, 2, name, words)
    assert not key or key not in outcome.err
    with pytest.raises(UsageError):
        read_vault({name: key})


def test_runs_that_are_not_encrypted_are_not_mixed_with_those_that_are(
    drpo: Drpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as plain:
        plain.delenv("DRPO_ENCRYPTION_KEY")
        assert drpo(*START, "--depth", "2").code == 0
    assert_one_line(drpo("resume", "t"), 1, "not encrypted", "--checkpoint")


def test_a_changed_or_exchanged_record_does_not_open(drpo: Drpo, sealed: Path, folder: Path) -> None:
    for number, change in enumerate(
        (
            "(SELECT value FROM store WHERE prefix LIKE '%t.queries')",
            '\'{"prompt": "mine"}\'',
            "replace(value, 'A', 'B')",
            "'[1]'",
        )
    ):
        path = folder / f"{number}.sqlite"
        path.write_bytes((sealed / BASE).read_bytes())
        with closing(sqlite3.connect(path)) as base, base:
            assert base.execute(f"UPDATE store SET value = {change} WHERE prefix LIKE '%t.candidates'").rowcount > 0
        assert_one_line(drpo("show", "t", "--checkpoint", path), 1, "damaged", "changed")


def test_a_checkpoint_that_is_not_sealed_is_not_read() -> None:
    sealed = make_serializer(Vault(bytes(32)))
    value = {"a": [1, "x", None]}
    assert sealed.loads_typed(sealed.dumps_typed(value)) == value
    assert b"x" * 40 not in sealed.dumps_typed("x" * 40)[1]
    kind, content = sealed.dumps_typed(value)
    with pytest.raises(CheckpointError, match="not sealed"):
        sealed.loads_typed(make_serializer().dumps_typed(value))
    with pytest.raises(CheckpointError, match="does not open"):
        sealed.loads_typed((kind, content[:-1] + bytes([content[-1] ^ 1])))


@pytest.mark.parametrize(
    "kind", ["null+aes2", "json+aes2", "pickle+aes2", "msgpack+aes", "msgpack+des", "msgpack+", "+aes2", ""]
)
def test_a_sealed_checkpoint_does_not_open_as_another_kind(kind: str) -> None:
    serializer = make_serializer(Vault(bytes(32)))
    written, content = serializer.dumps_typed({"a": 1})
    assert written == "msgpack+aes2"
    with pytest.raises(CheckpointError, match="changed"):
        serializer.loads_typed((kind, content))


@pytest.mark.parametrize("kind", ["null+aes", "json+aes", "msgpack+des", "msgpack"])
def test_a_changed_kind_is_one_line(
    drpo: Drpo, monkeypatch: pytest.MonkeyPatch, sealed: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / BASE.name
    path.write_bytes((sealed / BASE).read_bytes())
    with closing(sqlite3.connect(path)) as base, base:
        assert base.execute("UPDATE checkpoints SET type = ?", (kind,)).rowcount > 0
    assert_one_line(drpo("resume", "t", "--checkpoint", path, "--display", "none"), 1, "encrypted", "changed")


def test_events_of_another_run_do_not_open(sealed: Path) -> None:
    lines = (sealed / "drpo_runs" / "t" / "events.jsonl.sealed").read_text().splitlines()
    vault = Vault(bytes.fromhex(VAULT_KEY))
    assert parse_event(open_event_line(lines[0], vault, thread_id="t")).run_id == "t"
    with pytest.raises(CheckpointError, match=r"events/u.* does not open"):
        open_event_line(lines[0], vault, thread_id="u")


@given(st.binary(max_size=100), st.text(max_size=20), st.text(max_size=20))
def test_what_is_sealed_opens_at_its_own_place_alone(content: bytes, place: str, other: str) -> None:
    vault = Vault(bytes(range(32)))
    sealed = vault.seal(content, place=place)
    assert vault.open(sealed, place=place) == content
    assert vault.seal(content, place=place) != sealed
    if other != place:
        with pytest.raises(CheckpointError, match="does not open"):
            vault.open(sealed, place=other)
    with pytest.raises(CheckpointError, match="does not open"):
        Vault(bytes(32)).open(sealed, place=place)


@given(st.text(max_size=60))
def test_any_text_in_the_place_of_a_sealed_one_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="does not open"):
        Vault(bytes(32)).open(text, place="p")
