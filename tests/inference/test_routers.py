"""A router's file is read once, anew when it was replaced, and refused when it is not what it should be."""

import os
import threading
from pathlib import Path

import pytest

from drpo_graph.errors import RewardModelError
from drpo_graph.inference.routers import RouterFile, Routers, digest_router
from drpo_graph.parts.choosers import PromptChoice
from tests.support.choosers import BEST, FakeChooser, RouterReader, write_router


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_router(tmp_path / "tides.npz")


async def test_file_is_read_at_the_first_choice_and_when_it_was_replaced(path: Path) -> None:
    reader = RouterReader()
    router = RouterFile(path, open_router=reader)
    assert (router.name, reader.opened) == ("tides", [])
    for _ in range(2):
        assert (await router.achoose("Why?")).prompt == BEST
    assert len(reader.opened) == 1
    os.replace(write_router(path.with_name("new.npz"), best="Think twice."), path)
    assert (await router.achoose("Why?")).prompt == router.best_prompt == "Think twice."
    assert len(reader.opened) == 2


async def test_file_that_changed_under_its_hash_is_refused_in_one_line(path: Path) -> None:
    router = RouterFile(path, sha256=digest_router(path), open_router=RouterReader())
    assert (await router.achoose("Why?")).prompt == BEST
    os.utime(path, (1, 1))  # Touched, it is the same.
    await router.achoose("Why?")
    write_router(path, best="Think twice.")
    with pytest.raises(RewardModelError, match="has changed since it was put in use") as told:
        await router.achoose("Why?")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("sha256", [None, "0" * 64])
async def test_missing_file_is_told(tmp_path: Path, sha256: str | None) -> None:
    router = RouterFile(tmp_path / "none.npz", sha256=sha256, open_router=RouterReader())
    with pytest.raises(RewardModelError, match=r"none\.npz: No such file"):
        await router.achoose("Why?")
    with pytest.raises(RewardModelError, match="No such file"):
        digest_router(tmp_path / "none.npz")


async def test_failed_reading_is_tried_again(path: Path) -> None:
    content = path.read_text()
    path.write_text("{")
    router = RouterFile(path, open_router=RouterReader())
    with pytest.raises(RewardModelError, match="it is none"):
        await router.achoose("Why?")
    path.write_text(content)
    assert (await router.achoose("Why?")).prompt == BEST


def test_file_that_changes_while_it_is_read_is_told(path: Path) -> None:
    def read(place: Path) -> FakeChooser:
        write_router(place, best="Another one.")
        return FakeChooser()

    with pytest.raises(RewardModelError, match="changes while it is read"):
        RouterFile(path, open_router=read).open()


def test_chooser_without_a_best_prompt_is_told(path: Path) -> None:
    class Plain:
        async def achoose(self, query: str) -> PromptChoice:
            return PromptChoice(prompt="Be plain.")

    with pytest.raises(RewardModelError, match="no best single prompt"):
        _ = RouterFile(path, open_router=lambda place: Plain()).best_prompt


def test_concurrent_readers_read_once(path: Path) -> None:
    reader, gate = RouterReader(), threading.Barrier(4)
    routers = Routers(reader)

    def read() -> None:
        gate.wait(10)
        routers.at(path).open()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reader.opened) == 1


def test_same_file_is_the_same_chooser(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    routers = Routers(RouterReader())
    known = routers.at(path)
    monkeypatch.chdir(path.parent)
    assert routers.at(Path("tides.npz")) is known
    assert routers.at(path, sha256="0" * 64) is not known
    for number in range(50):
        routers.at(path, sha256=str(number))
    assert len(routers._known) < 50
