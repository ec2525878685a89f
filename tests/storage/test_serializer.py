"""A checkpoint is read as data: nothing that it names is imported or called."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_SINGLE_ARG, EXT_METHOD_SINGLE_ARG, JsonPlusSerializer
from langgraph.types import Send

from drpo_graph.errors import CheckpointError, DamagedError
from drpo_graph.safety.encryption import Vault
from drpo_graph.storage.serializer import bound_to, make_serializer
from tests.support.command import KEY, SMALL, Drpo, serve
from tests.support.fake_server import ServerOptions
from tests.support.oracle import build_responder


def make_bomb(command: str, code: int = EXT_CONSTRUCTOR_SINGLE_ARG) -> ormsgpack.Ext:
    fields = ("os", "system", command) if code == EXT_CONSTRUCTOR_SINGLE_ARG else ("os", "path", command, "system")
    return ormsgpack.Ext(code, ormsgpack.packb(fields))


@pytest.mark.parametrize("code", [EXT_CONSTRUCTOR_SINGLE_ARG, EXT_METHOD_SINGLE_ARG])
def test_a_call_in_a_checkpoint_is_not_made(tmp_path: Path, code: int) -> None:
    bomb = ormsgpack.packb({"x": make_bomb(f"touch {tmp_path}/marker", code)})
    make_serializer().loads_typed(("msgpack", bomb))
    assert list(tmp_path.iterdir()) == []


def test_langgraph_s_default_would_make_it(tmp_path: Path) -> None:
    bomb = ormsgpack.packb({"x": make_bomb(f"touch {tmp_path}/marker")})
    JsonPlusSerializer(allowed_msgpack_modules=True).loads_typed(("msgpack", bomb))
    assert [path.name for path in tmp_path.iterdir()] == ["marker"]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("pickle", b"cos\nsystem\n(S'true'\ntR."),
        ("json", b'{"lc": 2, "type": "constructor", "id": ["pathlib", "PosixPath"], "args": ["/tmp"]}'),
        (
            "json",
            b'{"lc": 1, "type": "constructor", "id": ["langchain", "prompts", "prompt", "PromptTemplate"], '
            b'"kwargs": {"template": "{x}", "input_variables": ["x"]}}',
        ),
        ("json", b"{}"),
        ("msgpack+aes", b"\x80"),
        ("x" * 1000, b""),
    ],
)
def test_a_record_of_a_kind_that_is_never_written_is_refused(kind: str, content: bytes) -> None:
    with pytest.raises(DamagedError, match=r"unknown kind, .*it was changed") as caught:
        make_serializer().loads_typed((kind, content))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x92\x01"])
def test_a_damaged_record_is_told_as_one(content: bytes) -> None:
    with pytest.raises(DamagedError, match="a record of it is no msgpack"):
        make_serializer().loads_typed(("msgpack", content))


@pytest.mark.parametrize("vault", [None, Vault(bytes(32))])
def test_a_serializer_to_which_langgraph_adds_its_own_types_refuses_as_before(vault: Vault | None) -> None:
    serializer = make_serializer(vault)
    assert isinstance(serializer, JsonPlusSerializer)
    widened = serializer.with_msgpack_allowlist([("drpo_graph.records", "Metric")])
    assert widened is not serializer
    assert widened.loads_typed(serializer.dumps_typed([1])) == [1]
    with pytest.raises(CheckpointError):
        widened.loads_typed(("json", b"{}"))


def of_run(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


@pytest.mark.parametrize("vault", [None, Vault(bytes(32))])
def test_what_was_saved_for_one_run_is_not_read_for_another(vault: Vault | None) -> None:
    serializer = make_serializer(vault)
    with bound_to(of_run("t")):
        saved = serializer.dumps_typed({"a": 1})
        assert serializer.loads_typed(saved) == {"a": 1}
    with bound_to(of_run("u")), pytest.raises(DamagedError, match="Run 'u': a checkpoint is damaged"):
        serializer.loads_typed(saved)


@pytest.mark.parametrize("vault", [None, Vault(bytes(32))])
def test_what_an_earlier_version_saved_is_read(vault: Vault | None) -> None:
    kind, content = JsonPlusSerializer().dumps_typed({"a": 1})
    if vault is not None:
        kind, content = f"{kind}+aes", vault.seal_bytes(content, place=f"checkpoint/{kind}")
    assert make_serializer(vault).loads_typed((kind, content)) == {"a": 1}


def test_what_the_graph_saves_comes_back_as_it_was() -> None:
    serializer = make_serializer()
    for value in ({"a": [1, 2.5, None, "x"]}, Send("expand", {"level": 1}), "text", None, b"bytes"):
        assert serializer.loads_typed(serializer.dumps_typed(value)) == value


def test_resuming_a_tampered_checkpoint_calls_nothing(
    drpo: Drpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(build_responder(seed=3), ServerOptions(models=["world"], api_key=KEY)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        assert drpo("optimize", *SMALL, "--depth", "2", "--thread-id", "t", "--display", "none").code == 0
        bomb = make_bomb(f"touch {tmp_path}/marker")
        with closing(sqlite3.connect(tmp_path / "drpo_runs" / "checkpoints.sqlite")) as base, base:
            num_tampered = 0
            for row, content in base.execute(
                "SELECT rowid, substr(checkpoint, 9) FROM checkpoints WHERE type = 'msgpack+sum'"
            ).fetchall():
                checkpoint: Any = ormsgpack.unpackb(content, option=ormsgpack.OPT_NON_STR_KEYS, ext_hook=ormsgpack.Ext)
                checkpoint["channel_values"]["initial_prompt"] = bomb
                packed = ormsgpack.packb(checkpoint, option=ormsgpack.OPT_NON_STR_KEYS)
                change = "UPDATE checkpoints SET type = 'msgpack', checkpoint = ? WHERE rowid = ?"
                base.execute(change, (packed, row))
                num_tampered += 1
        assert num_tampered > 0
        drpo("resume", "t", "--display", "none")
    assert not (tmp_path / "marker").exists()
