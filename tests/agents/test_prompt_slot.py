"""A slot's prompt is swapped under its readers, keeps its former versions, and refuses what does not fit."""

import multiprocessing
import threading
from pathlib import Path

import pytest

from drpo_graph.agents import PromptSlot, SlotVersion, swap_if_better
from drpo_graph.agents.prompt_slot import MAX_VERSIONS
from drpo_graph.errors import DRPOError, UsageError
from drpo_graph.records import PairedComparison, RunResult, Validation
from tests.docs.test_inference import RESULT


@pytest.fixture
def slot(tmp_path: Path) -> PromptSlot:
    return PromptSlot(tmp_path / "slot" / "prompt.json", initial="Help.")


def test_swap_is_seen_by_other_readers_and_kept_private(slot: PromptSlot) -> None:
    reader = PromptSlot(slot.path)
    assert (reader.current.version, reader.current.text) == (1, "Help.")
    made = slot.swap(RESULT)
    assert reader.current == made
    assert (made.version, made.text, made.run) == (2, RESULT.system_prompt, "tides")
    assert (made.reward, made.initial_reward, made.replaced) == (4.0, None, 1)
    assert [one.version for one in reader.versions] == [1, 2]
    assert {path.stat().st_mode & 0o777 for path in slot.path.parent.iterdir()} == {0o600}


def test_swap_by_another_process_is_seen(slot: PromptSlot) -> None:
    other = multiprocessing.get_context("fork").Process(target=slot.swap, args=("From elsewhere.",))
    other.start()
    other.join(20)
    assert other.exitcode == 0
    assert slot.current.text == "From elsewhere."


def test_an_initial_prompt_does_not_replace_what_is_there(slot: PromptSlot) -> None:
    slot.swap("Help well.")
    assert PromptSlot(slot.path, initial="Help.").current.text == "Help well."


def test_roll_back_goes_to_what_was_in_use_before(slot: PromptSlot) -> None:
    slot.swap("Two.")
    slot.swap("Three.")
    assert slot.roll_back().text == "Two."
    # Three was taken back: it is not what four replaces.
    assert (slot.swap("Four.").version, slot.current.replaced) == (4, 2)
    assert [slot.roll_back().text, slot.roll_back().text] == ["Two.", "Help."]
    with pytest.raises(UsageError, match="version 1 is the first"):
        slot.roll_back()
    assert slot.roll_back(to=3).text == "Three."
    with pytest.raises(UsageError, match="no version 9: expected one of 1, 2, 3, 4"):
        slot.roll_back(to=9)


def test_concurrent_swaps_lose_none(slot: PromptSlot) -> None:
    def swap(name: str) -> None:
        own = PromptSlot(slot.path)
        for number in range(5):
            own.swap(f"{name} {number}")

    threads = [threading.Thread(target=swap, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.version for one in slot.versions] == list(range(1, 22))
    assert len({one.text for one in slot.versions}) == 21


def test_so_many_versions_are_kept(slot: PromptSlot) -> None:
    # What many swaps leave behind, without waiting for the disk that often.
    former = [SlotVersion(version=one, text=str(one), time=0.0).model_dump_json() for one in range(1, MAX_VERSIONS + 1)]
    slot.path.write_text(f'{{"current": {MAX_VERSIONS}, "versions": [{",".join(former)}]}}')
    slot.swap("New.")
    assert [one.version for one in slot.versions] == list(range(2, MAX_VERSIONS + 2))


def test_swap_meant_for_another_version_is_refused(slot: PromptSlot) -> None:
    slot.swap("Two.", if_version=1)
    with pytest.raises(UsageError, match="version 2 is in use, not 1"):
        slot.swap("Three.", if_version=1)


def test_placeholders_must_stay(tmp_path: Path) -> None:
    slot = PromptSlot(tmp_path / "s.json", initial="Help {user} of {company}.", placeholders="format")
    with pytest.raises(UsageError, match=r"missing: \{company\}"):
        slot.swap("Help {user}.")
    assert slot.swap("{company}: help {user} well.").version == 2
    assert PromptSlot(slot.path).placeholders == "format"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "Mend the file"),
        ('{"current": 2, "versions": [{"version": 1, "text": "a", "time": 0}]}', "no version 2"),
        ('{"format": 9, "current": 1, "versions": [{"version": 1, "text": "a", "time": 0}]}', "format 9"),
        (None, "Give it an initial prompt"),
    ],
)
def test_unusable_file_is_told(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "s.json").write_text(content)
    with pytest.raises(UsageError, match=told):
        PromptSlot(tmp_path / "s.json")


@pytest.mark.parametrize("place", ["file/s.json", "folder"])
def test_unusable_place_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DRPOError, match=r"^Prompt slot "):
        PromptSlot(tmp_path / place, initial="Help.")


def test_blank_prompt_is_refused(slot: PromptSlot) -> None:
    with pytest.raises(UsageError, match="blank"):
        slot.swap(" \n")
    assert slot.current.version == 1


def found(*, reward: float = 4.0, initial: float | None = 3.0, low: float | None = None) -> RunResult:
    """Return a run's result on the slot's prompt, validated where an interval is given."""
    fields: dict[str, object] = {"reward": reward, "initial_reward_same_queries": initial}
    if low is not None:
        one = PairedComparison(
            candidate_id="1", num_queries=9, reward=reward, difference=1.0, interval_low=low, interval_high=2.0
        )
        fields["validation"] = Validation(
            num_queries=9, initial_reward=3.0, comparisons=(one,), selected_id="1", is_significant=one.is_significant
        )
    return RESULT.model_copy(update=fields)


@pytest.mark.parametrize(
    ("result", "rule", "is_swapped"),
    [
        (found(), "auto", True),
        (found(reward=3.0), "auto", False),
        (found(initial=None), "auto", False),
        (found(), "significant", False),
        (found(low=0.1), "auto", True),
        (found(low=-0.1), "auto", False),
        (found(low=-0.1), "better", True),
        # By its pairs: the mean rewards are over other queries.
        (found(reward=2.0, low=-0.1), "better", True),
        (found().model_copy(update={"initial_prompt": "Another."}), "better", False),
        (found().model_copy(update={"system_prompt": "Help."}), "better", False),
    ],
)
def test_a_found_prompt_is_swapped_in_only_where_it_was_shown_to_be_better(
    slot: PromptSlot, result: RunResult, rule: str, is_swapped: bool
) -> None:
    swap = swap_if_better(slot, result, swap_when=rule)  # type: ignore[arg-type]
    assert (swap.version is not None, slot.current.version == 2) == (is_swapped, is_swapped)
    assert swap.reason
