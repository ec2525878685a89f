"""A slot's version may be a router: named with its hash, rolled back like a text, unknown to those who know none."""

import json
import shutil
from pathlib import Path

import pytest

from drpo_graph.agents import PromptSlot, SlotVersion, swap_if_better
from drpo_graph.errors import RewardModelError, UsageError
from drpo_graph.inference.prompt_choice import ChosenPrompt, RoutedPrompt
from tests.docs.test_inference import RESULT
from tests.support.choosers import BEST, PROMPT_BY_QUERY, RouterReader, write_router


@pytest.fixture
def slot(tmp_path: Path) -> PromptSlot:
    return PromptSlot(tmp_path / "slot" / "prompt.json", initial="Help.", open_router=RouterReader())


async def choose(slot: PromptSlot, query: str) -> str:
    found = slot.find_prompt()
    return found.text if isinstance(found, ChosenPrompt) else (await found.choose(query)).text


async def test_router_is_put_in_use_with_its_hash_and_its_best_prompt(slot: PromptSlot, tmp_path: Path) -> None:
    made = slot.swap(write_router(tmp_path / "r.npz"))
    assert slot.current == made
    assert (made.version, made.text, made.router, made.replaced) == (2, BEST, str(tmp_path / "r.npz"), 1)
    assert made.router_sha256 is not None
    assert len(made.router_sha256) == 64
    assert isinstance(slot.find_prompt(), RoutedPrompt)
    reader = PromptSlot(slot.path, open_router=RouterReader())
    assert [await choose(reader, query) for query in ("3 + 3?", "Why?")] == [PROMPT_BY_QUERY["3 + 3?"], BEST]


@pytest.mark.parametrize("name", ["r.npz", "routers/r.npz"])
async def test_router_beside_the_slot_moves_with_it(slot: PromptSlot, tmp_path: Path, name: str) -> None:
    made = slot.swap(write_router(slot.path.parent / name))
    assert made.router == name
    shutil.move(slot.path.parent, tmp_path / "moved")
    moved = PromptSlot(tmp_path / "moved" / "prompt.json", open_router=RouterReader())
    assert await choose(moved, "3 + 3?") == PROMPT_BY_QUERY["3 + 3?"]


async def test_path_is_from_the_working_folder(
    slot: PromptSlot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_router(tmp_path / "r.npz")
    assert slot.swap(Path("r.npz")).router == str(tmp_path / "r.npz")
    monkeypatch.chdir("/")
    assert await choose(slot, "3 + 3?") == PROMPT_BY_QUERY["3 + 3?"]


async def test_roll_back_goes_between_texts_and_routers(slot: PromptSlot, tmp_path: Path) -> None:
    one, two = (write_router(tmp_path / f"{name}.npz", prompt_by_query={"3 + 3?": name}) for name in ("One.", "Two."))
    for given, text in ((one, "One."), ("Text.", "Text."), (two, "Two.")):
        slot.swap(given)
        assert await choose(slot, "3 + 3?") == text
    for text in ("Text.", "One.", "Help."):
        slot.roll_back()
        assert await choose(slot, "3 + 3?") == text
    slot.roll_back(to=4)
    assert await choose(slot, "3 + 3?") == "Two."


def test_changed_or_missing_router_is_not_rolled_back_to(slot: PromptSlot, tmp_path: Path) -> None:
    path = write_router(tmp_path / "r.npz")
    slot.swap(path)
    slot.swap("Text.")
    write_router(path, best="Another one.")
    with pytest.raises(RewardModelError, match="has changed since it was put in use"):
        slot.roll_back()
    path.unlink()
    with pytest.raises(RewardModelError, match="No such file"):
        slot.roll_back()
    assert slot.current.text == "Text."
    # Its prompt is there all the same, for who wants it.
    assert slot.versions[1].text == BEST


@pytest.mark.parametrize("content", [None, "{"])
def test_what_is_no_router_is_not_put_in_use(slot: PromptSlot, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "r.npz").write_text(content)
    with pytest.raises(RewardModelError, match=r"r\.npz"):
        slot.swap(tmp_path / "r.npz")
    assert slot.current.version == 1


@pytest.mark.parametrize(("best", "other"), [(BEST, "Explain to {user}."), ("Help {user} well.", "Explain to {who}.")])
def test_router_whose_prompts_do_not_keep_the_placeholders_is_refused(tmp_path: Path, best: str, other: str) -> None:
    slot = PromptSlot(tmp_path / "s.json", initial="Help {user}.", placeholders="format", open_router=RouterReader())
    with pytest.raises(UsageError, match=r"missing: \{user\}"):
        slot.swap(write_router(tmp_path / "r.npz", best=best, prompt_by_query={"Why?": other}))
    assert slot.current.version == 1
    slot.swap(write_router(tmp_path / "r.npz", best="Help {user} well.", prompt_by_query={"Why?": "Why, {user}?"}))
    assert slot.current.version == 2


def test_router_with_a_blank_prompt_is_refused(slot: PromptSlot, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="blank"):
        slot.swap(write_router(tmp_path / "r.npz", best=" "))
    assert slot.current.version == 1


def test_router_meant_for_another_version_is_refused(slot: PromptSlot, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="version 1 is in use, not 7"):
        slot.swap(write_router(tmp_path / "r.npz"), if_version=7)


def test_file_without_routers_is_written_as_before(slot: PromptSlot) -> None:
    slot.swap(RESULT)
    written = json.loads(slot.path.read_text())
    fields = {"version", "text", "run", "reward", "initial_reward", "replaced", "time"}
    assert [set(one) for one in written["versions"]] == [fields, fields]
    assert set(slot.current.model_dump()) == fields


def test_file_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"current": 1, "versions": [{"version": 1, "text": "a", "time": 0}]}')
    slot = PromptSlot(path, open_router=RouterReader())
    assert slot.current == SlotVersion(version=1, text="a", time=0)
    slot.swap(write_router(tmp_path / "r.npz"))
    written = json.loads(path.read_text())
    assert ["router" in one for one in written["versions"]] == [False, True]
    assert written["versions"][1]["router"] == "r.npz"


def test_run_does_not_replace_a_router(slot: PromptSlot, tmp_path: Path) -> None:
    slot.swap(write_router(tmp_path / "r.npz", best=RESULT.initial_prompt))
    swap = swap_if_better(slot, RESULT, swap_when="better")
    assert swap.version is None
    assert "router" in swap.reason
