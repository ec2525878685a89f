"""A router in a file."""

import copy
import io
import json
import os
import pickle
import random
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drpo_graph.errors import ModelSpecError, RewardModelError, UsageError
from drpo_graph.inference import load_router
from drpo_graph.oirl.demonstrations import Demonstrations
from drpo_graph.oirl.features import FeatureSpace
from drpo_graph.oirl.router import PromptRouter
from drpo_graph.oirl.router_file import (
    FORMAT,
    _hash,
    check_router_path,
    open_embeddings,
    open_embeddings_of,
    read_router,
)
from drpo_graph.oirl.router_parts import RouterParts
from drpo_graph.oirl.training import TrainingSettings, train_router
from tests.oirl.routers import SHAPE, SUM, KindEmbeddings, ask, learn, make_rows
from tests.support.embeddings import CountingEmbeddings

FRESH = [ask((SUM, SHAPE)[number % 2], 5_000 + number) for number in range(20)]
Stored = dict[str, NDArray[Any]]


async def save(folder: Path, *, num_queries: int = 20, reward_model: str = "additive") -> Path:
    path = folder / "router.npz"
    (await learn(make_rows(num_queries), reward_model=reward_model)).save(path)
    return path


def told(path: Path) -> str | None:
    """Return what is wrong with a file, which must be told in one line; ``None`` where nothing is."""
    try:
        read_router(path)
    except RewardModelError as error:
        text = str(error)
        assert text.startswith(str(path))
        assert "\n" not in text
        return text
    return None


def rewrite(path: Path, change: Callable[[Stored], Any], *, is_hashed: bool = True) -> None:
    """Write a router's file anew with other arrays, as somebody would who knows how it is made."""
    with np.load(path) as content:
        arrays: Stored = {name: content[name] for name in content.files if name != "hash"}
    change(arrays)
    if is_hashed:
        arrays["hash"] = np.frombuffer(_hash(arrays), dtype=np.uint8)
    np.savez(path, **arrays)


def change_header(**changes: object) -> Callable[[Stored], None]:
    def change(arrays: Stored) -> None:
        header = json.loads(arrays["header"].tobytes()) | changes
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

    return change


@pytest.mark.parametrize("reward_model", ["neighbours", "additive"])
async def test_a_router_that_was_saved_and_loaded_chooses_the_same(tmp_path: Path, reward_model: str) -> None:
    router = await learn(make_rows(tokens=(9, 20, 30)), reward_model=reward_model, price_per_1k=0.5, policy="best")
    path = tmp_path / "new" / "router.npz"
    router.save(path)
    loaded = PromptRouter.load(path, embeddings=KindEmbeddings())
    assert loaded.batch(list(FRESH)) == router.batch(list(FRESH))
    assert loaded.prompts == router.prompts
    for name in ("provenance", "gate", "policy", "price_per_1k"):
        assert getattr(loaded.parts, name) == getattr(router.parts, name)
    loaded.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.parametrize("num_queries", [1, 2, 3, 6, 9])
async def test_a_router_learned_from_few_queries_is_saved_and_loaded(tmp_path: Path, num_queries: int) -> None:
    # Some differ, and too few to say how sure a gain is.
    path = await save(tmp_path, num_queries=num_queries, reward_model="neighbours")
    assert told(path) is None


async def test_a_file_holds_no_pickle_and_asks_for_none(tmp_path: Path) -> None:
    path = await save(tmp_path)
    with np.load(path, allow_pickle=False) as content:
        assert all(content[name].dtype != object for name in content.files)


async def test_a_damaged_byte_is_told_or_changes_nothing(tmp_path: Path) -> None:
    path = await save(tmp_path)
    content, whole = path.read_bytes(), _arrays_of(read_router(path))
    draws = random.Random(0)
    num_told = 0
    # Of every part of the file some, and all of its end, where the parts are listed.
    for place in sorted({*range(0, len(content), 37), *range(len(content) - 400, len(content), 3)}):
        path.write_bytes(content[:place] + bytes([content[place] ^ draws.randint(1, 255)]) + content[place + 1 :])
        if told(path) is not None:
            num_told += 1
        else:
            # Such as a date or a right, which zip keeps and nobody reads.
            assert _arrays_of(read_router(path)) == whole
    assert num_told > len(content) / 37 / 2


def _arrays_of(parts: RouterParts) -> list[bytes]:
    members = [value.tobytes() for member in parts.ensemble.members for value in member.save().values()]
    space = [getattr(parts.space, name).tobytes() for name in FeatureSpace.__slots__ if name != "embeddings"]
    header = repr((parts.provenance, parts.gate, parts.prompts, parts.ensemble.calibration, parts.policy)).encode()
    return [header, parts.prompt_vectors.tobytes(), parts.reference.tobytes(), *members, *space]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_damage_in_a_file_that_was_compressed_since_is_told(tmp_path: Path, compression: int) -> None:
    path = await save(tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    content = buffer.getvalue()
    path.write_bytes(content)
    assert told(path) is None
    for place in range(40, len(content), 29):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        told(path)


async def test_a_file_that_was_cut_is_told(tmp_path: Path) -> None:
    path = await save(tmp_path)
    content = path.read_bytes()
    for size in (*range(0, len(content), 97), len(content) - 1):
        path.write_bytes(content[:size])
        assert told(path) is not None


class Trap:
    """Would be heard of when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("sprung",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
async def test_a_pickle_is_never_loaded(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = await save(tmp_path)
    trap = np.array([Trap()], dtype=object)
    for name in ("header", "reference", "member0/query", "extra"):
        await save(tmp_path)
        with np.load(path) as content:
            arrays = {key: content[key] for key in content.files}
        np.savez(path, **{**arrays, name: trap})
        assert told(path) is not None
    path.write_bytes(pickle.dumps(Trap(), protocol))
    assert told(path) is not None
    np.save(tmp_path / "one.npy", trap, allow_pickle=True)
    os.replace(tmp_path / "one.npy", path)
    assert told(path) is not None
    assert not os.path.exists("sprung")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + b"\0" * 18, b"\x93NUMPY\x01\x00"])
def test_a_file_of_another_kind_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "router.npz"
    path.write_bytes(content)
    assert "holds no router" in (told(path) or "")


def test_other_archives_and_arrays_are_told(tmp_path: Path) -> None:
    path = tmp_path / "router.npz"
    np.savez(path, weights=np.zeros(3))
    assert "holds no router" in (told(path) or "")
    np.savez(path, hash=np.zeros(32, dtype=np.uint8), header=np.zeros(1, dtype=np.uint8))
    assert "is damaged" in (told(path) or "")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert "holds no router (it is no .npz file)" in (told(path) or "")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")
    assert told(path) is not None


def test_a_file_that_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    assert "cannot be read (No such file" in (told(tmp_path / "missing.npz") or "")
    assert "cannot be read (Is a directory" in (told(tmp_path) or "")


async def test_a_router_is_not_saved_where_there_is_no_room(tmp_path: Path) -> None:
    router = await learn(make_rows(6))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "router.npz", tmp_path):
        with pytest.raises(RewardModelError, match="cannot be written"):
            router.save(path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("found", [FORMAT + 1, 0, None, "1"])
async def test_another_format_is_told_with_the_one_that_is_read(tmp_path: Path, found: object) -> None:
    path = await save(tmp_path)
    rewrite(path, change_header(format=found))
    assert told(path) == f"{path} has format {found!r}, this version reads {FORMAT}. Train the router again."


async def test_arrays_that_were_changed_without_the_hash_are_damage(tmp_path: Path) -> None:
    path = await save(tmp_path)
    with np.load(path) as content:
        stored = content["hash"]

    def turn_over(arrays: Stored) -> None:
        arrays["member0/query"] = -arrays["member0/query"]
        arrays["hash"] = stored

    rewrite(path, turn_over, is_hashed=False)
    assert told(path) == f"{path} is damaged: its content is not what was saved. Train the router again."
    rewrite(path, lambda arrays: None, is_hashed=False)
    assert "holds no router" in (told(path) or "")


@pytest.mark.parametrize("reward_model", ["neighbours", "additive"])
async def test_a_missing_array_is_told_whoever_made_the_file(tmp_path: Path, reward_model: str) -> None:
    path = await save(tmp_path, reward_model=reward_model)
    content = path.read_bytes()
    for name in np.load(path).files:
        path.write_bytes(content)
        if name != "hash":
            rewrite(path, lambda arrays, name=name: arrays.pop(name))  # type: ignore[misc]
            assert "holds no router" in (told(path) or ""), name


@pytest.mark.parametrize("shape", [(0,), (2,), (3, 2), (), (1, 1, 1)])
@pytest.mark.parametrize("reward_model", ["neighbours", "additive"])
async def test_an_array_of_another_shape_is_told(tmp_path: Path, reward_model: str, shape: tuple[int, ...]) -> None:
    path = await save(tmp_path, reward_model=reward_model)
    content = path.read_bytes()
    for name in np.load(path).files:
        # One number of these says enough.
        if name in ("hash", "header") or name.endswith(("/bias", "/num_neighbours")):
            continue
        path.write_bytes(content)
        other = np.ones(shape, dtype=np.float32)
        rewrite(path, lambda arrays, name=name, other=other: arrays.update({name: other}))  # type: ignore[misc]
        assert "holds no router" in (told(path) or ""), name


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": []},
        {"gate": None},
        {"num_members": 0},
        {"num_members": 4},
        {"policy": "boldest"},
        {"more": 1},
        {"calibration": ["a", "b"]},
    ],
)
async def test_a_header_that_is_not_a_routers_is_told(tmp_path: Path, changes: dict[str, object]) -> None:
    path = await save(tmp_path)
    rewrite(path, change_header(**changes))
    assert "holds no router" in (told(path) or "")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
async def test_a_header_that_is_no_json_object_is_told(tmp_path: Path, text: bytes) -> None:
    path = await save(tmp_path)
    rewrite(path, lambda arrays: arrays.update(header=np.frombuffer(text, dtype=np.uint8)))
    assert told(path) is not None


async def test_a_router_with_other_embeddings_is_refused_on_its_first_query(tmp_path: Path) -> None:
    router = PromptRouter.load(await save(tmp_path), embeddings=CountingEmbeddings())
    with pytest.raises(RewardModelError, match="learned with embeddings 'kinds', which 'CountingEmbeddings' is not"):
        router.invoke("sum of 1 and 2?")


async def test_embeddings_whose_name_says_nothing_here_must_be_given(tmp_path: Path) -> None:
    path = await save(tmp_path)
    with pytest.raises(ModelSpecError, match="Embeddings 'kinds'"):
        PromptRouter.load(path)
    with pytest.raises(ModelSpecError):
        open_embeddings("nobody")


async def test_prompts_of_any_writing_come_back(tmp_path: Path) -> None:
    rows = [row._replace(prompt=row.prompt + " é\n\0“”🎈\u2028", prompt_name="n\ud800") for row in make_rows(8)]
    router = await learn(rows)
    router.save(tmp_path / "a.npz")
    assert read_router(tmp_path / "a.npz").prompts == router.prompts


async def test_embeddings_are_named_by_their_class_where_nobody_names_them() -> None:
    table = Demonstrations.from_rows(make_rows(8))
    settings = TrainingSettings(reward_model="neighbours")
    router = await train_router(table, settings=settings, embeddings=KindEmbeddings())
    assert router.parts.provenance.embeddings == "KindEmbeddings"


async def test_queries_go_nowhere_else_than_where_they_went_before_unless_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    path = tmp_path / "router.npz"
    router = await learn()
    known = {"embeddings": "openai:e", "embeddings_base_url": "http://127.0.0.1:8/v1"}
    parts = replace(router.parts, provenance=router.parts.provenance.model_copy(update=known))
    PromptRouter(parts, router.embeddings).save(path)
    with pytest.raises(
        UsageError, match=r"at http://127.0.0.1:8/v1, and queries would be sent to http://127.0.0.1:9/v1"
    ):
        PromptRouter.load(path)
    with pytest.raises(UsageError, match="--embeddings-base-url URL"):
        load_router(path)
    for url in ("http://127.0.0.1:8/v1", "http://127.0.0.1:7/v1"):
        assert open_embeddings_of(parts.provenance, base_url=url).base_url == url  # type: ignore[attr-defined]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8/v1/")
    assert PromptRouter.load(str(path)).prompts == router.prompts


async def test_a_router_is_copied_as_it_is_and_not_pickled() -> None:
    router = await learn()
    assert copy.deepcopy(router) is copy.copy(router) is router
    with pytest.raises(TypeError, match="save it to a file"):
        pickle.dumps(router)


async def test_a_router_is_a_tool_that_takes_a_query() -> None:
    router = await learn()
    tool = router.as_tool(name="route", description="Chooses a prompt.")
    assert tool.args.keys() == {"query"}
    assert tool.invoke({"query": FRESH[0]}) == router.invoke(FRESH[0])


def test_a_router_s_file_has_its_own_ending(tmp_path: Path) -> None:
    for name in ("logs.jsonl", "router", "router.pkl"):
        with pytest.raises(RewardModelError, match=r"does not end in .npz"):
            check_router_path(tmp_path / name)
