"""What a stopped run holds to be final is asked for again when the user lets it: only that, and all is counted."""

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import Op, PutOp, Result

from drpo_graph.errors import CheckpointError, ModelCallError, SearchStalledError, TooManyFailuresError
from drpo_graph.records import RunResult
from drpo_graph.storage.sqlite_saver import InlineSqliteSaver, InlineSqliteStore
from tests.support.fake_server import FakeServer, Reply
from tests.support.mending import BAD, EXPIRED, QUERIES, Bench, Mood, count_calls, critic_is_bad, in_order


async def test_critic_that_is_broken_from_the_start_is_asked_all_again(tmp_path: Path) -> None:
    mood = Mood(critic_is_bad)
    async with FakeServer(mood) as server:
        bench = Bench(tmp_path, mood, server, queries_per_level=24, depth=3, beam_size=1, max_concurrency=4)
        with pytest.raises(TooManyFailuresError) as caught:
            await bench.start(QUERIES[:60])
        assert caught.value.resume_flags == "--retry-failed"
        num_before, bad = len(mood.asked), set(mood.questions("critic", bad=True))
        result = await bench.mend()
        again = set(mood.questions("critic", bad=False, since=num_before))
        firsts = {one for one in bad if "could not be used" not in one}
        assert len(firsts) >= 20
        assert firsts <= again
        assert result.failures_by_kind == {}
        assert count_calls(result) == mood.num_answered
        assert await bench.mend() == result


@pytest.mark.parametrize("retries_failed", [False, True])
async def test_failures_of_a_level_that_is_over_stay_and_are_counted(tmp_path: Path, retries_failed: bool) -> None:
    texts, num_rewrites = in_order(), 0

    def stop_in_the_second_level(role: str, told: str) -> Reply | None:
        nonlocal num_rewrites
        num_rewrites += role == "optimizer"
        if role == "critic" and texts[2] in told:
            return BAD
        return EXPIRED if role == "optimizer" and num_rewrites >= 2 else None

    mood = Mood(stop_in_the_second_level)
    async with FakeServer(mood) as server:
        bench = Bench(tmp_path, mood, server)
        with pytest.raises(ModelCallError):
            await bench.start()
        result = await bench.mend(retries_failed=retries_failed)
    assert result.failures_by_kind == {"unparsable": 2}
    assert count_calls(result) == mood.num_answered


async def test_failures_of_the_level_in_work_are_asked_again_and_no_others(tmp_path: Path) -> None:
    texts, num_late = in_order(), 0

    def stop_in_the_second_level(role: str, told: str) -> Reply | None:
        nonlocal num_late
        if role == "critic" and (texts[2] in told or texts[4] in told):
            return BAD
        num_late += role == "base" and texts[5] in told
        return EXPIRED if role == "base" and num_late >= 3 else None

    mood = Mood(stop_in_the_second_level)
    async with FakeServer(mood) as server:
        bench = Bench(tmp_path, mood, server, max_concurrency=2)
        with pytest.raises(ModelCallError):
            await bench.start()
        num_before = len(mood.asked)
        result = await bench.mend()
    assert result.failures_by_kind == {"unparsable": 2}
    again = mood.questions("critic", bad=False, since=num_before)
    assert not [one for one in again if texts[2] in one]
    assert any(texts[4] in one for one in again)
    assert count_calls(result) == mood.num_answered


async def test_what_came_out_well_is_never_asked_again(tmp_path: Path) -> None:
    mood = Mood(critic_is_bad)
    async with FakeServer(mood) as server:
        bench = Bench(tmp_path, mood, server)
        with pytest.raises(SearchStalledError):
            await bench.start()
        num_before = len(mood.asked)
        with pytest.raises(ModelCallError):
            await bench.mend(rule=lambda role, _: EXPIRED if role == "optimizer" else None)
        good, num_mended = mood.questions("critic", bad=False, since=num_before), len(mood.asked)
        assert len(good) == 2
        result = await bench.mend()
    assert not set(good) & set(mood.questions("critic", bad=False, since=num_mended))
    assert count_calls(result) == mood.num_answered


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_what_fails_again_is_counted_again_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sealed: bool
) -> None:
    if is_sealed:
        monkeypatch.setenv("DRPO_ENCRYPTION_KEY", secrets.token_hex(32))
    mood = Mood(critic_is_bad)
    async with FakeServer(mood) as server:
        bench = Bench(tmp_path, mood, server)
        with pytest.raises(SearchStalledError):
            await bench.start()
        num_first = len(mood.asked)
        with pytest.raises(SearchStalledError):
            await bench.mend(rule=critic_is_bad)
        num_second = len(mood.asked)
        assert num_second > num_first
        with pytest.raises(SearchStalledError):
            await bench.mend(retries_failed=False, rule=critic_is_bad)
        assert len(mood.asked) == num_second
        result = await bench.mend()
    assert result.unusable_by_kind == {"unparsable": len(mood.questions("critic", bad=True))}
    assert count_calls(result) == mood.num_answered


async def test_validation_that_nobody_could_score_stops_and_can_be_asked_again(tmp_path: Path) -> None:
    held_out = [f"held-out question {number}" for number in range(4)]

    def spoil_validation(role: str, told: str) -> Reply | None:
        return BAD if role == "critic" and "held-out question" in told else None

    mood = Mood(spoil_validation)
    async with FakeServer(mood) as server:
        bench = Bench(tmp_path, mood, server)
        with pytest.raises(SearchStalledError, match="held-out queries \\(unparsable: ") as caught:
            await bench.start(validation=held_out)
        assert (caught.value.is_resumable, caught.value.resume_flags) == (True, "--retry-failed")
        num_before = len(mood.asked)
        with pytest.raises(SearchStalledError):
            await bench.mend(retries_failed=False)
        assert len(mood.asked) == num_before
        result = await bench.mend()
    assert {role for role, *_ in mood.asked[num_before:]} == {"critic"}
    assert result.validation is not None
    assert {one.num_queries for one in result.validation.comparisons} == {4}
    assert result.failures_by_kind == {}
    assert count_calls(result) == mood.num_answered


async def test_failed_samples_of_every_role_are_counted(tmp_path: Path) -> None:
    mood = Mood(lambda role, _: BAD if role in ("metrics", "optimizer") else None)
    async with FakeServer(mood) as server:
        result = await Bench(tmp_path, mood, server).start()
    first = Counter(role for role, told, given in mood.asked if given is BAD and "could not be used" not in told)
    # Each question is asked three times before it is repaired; an optimizer's has two samples.
    assert result.failures_by_kind == {"unparsable": (first["metrics"] + 2 * first["optimizer"]) // 3}
    assert first["metrics"]
    assert first["optimizer"]


class Killer:
    """Lets so many writes to the checkpoint pass, and none after them: what a kill leaves behind."""

    def __init__(self, num_writes: int) -> None:
        self.num_left = num_writes

    def strike(self, patch: pytest.MonkeyPatch) -> None:
        """Put this in front of the store and the saver."""
        batch = InlineSqliteStore.abatch

        async def abatch(store: InlineSqliteStore, ops: Iterable[Op]) -> list[Result]:
            given = list(ops)
            if any(isinstance(op, PutOp) for op in given):
                self._count()
            return await batch(store, given)

        patch.setattr(InlineSqliteStore, "abatch", abatch)
        for name in ("aput", "aput_writes"):
            patch.setattr(InlineSqliteSaver, name, self._guard(getattr(InlineSqliteSaver, name)))

    def _guard(self, write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def guarded(*given: Any, **named: Any) -> Any:
            self._count()
            return await write(*given, **named)

        return guarded

    def _count(self) -> None:
        self.num_left -= 1
        if self.num_left < 0:
            raise CheckpointError("killed")


async def mend_after_kill(folder: Path, num_writes: int, *, validation: Sequence[str] = ()) -> RunResult | None:
    """Return what a mended run finds whose first attempt at it was killed; ``None`` where it came to its end."""
    mood = Mood(lambda role, told: BAD if role == "critic" and (not validation or "held-out" in told) else None)
    async with FakeServer(mood) as server:
        bench = Bench(folder, mood, server, depth=2)
        with pytest.raises(SearchStalledError):
            await bench.start(validation=validation)
        with pytest.MonkeyPatch.context() as patch:
            Killer(num_writes).strike(patch)
            try:
                await bench.mend()
            except CheckpointError:
                pass
            else:
                return None
        result = await bench.mend()
    assert result.unusable_by_kind == {"unparsable": len(mood.questions("critic", bad=True))}
    return result


@pytest.mark.parametrize("validation", [(), ("held-out question 1", "held-out question 2")])
@pytest.mark.parametrize("places", [(0, 4, 8, 12), pytest.param(range(1, 60, 3), marks=pytest.mark.slow)])
async def test_kill_at_any_write_of_asking_again_loses_and_doubles_nothing(
    tmp_path: Path, validation: Sequence[str], places: Sequence[int]
) -> None:
    found = [await mend_after_kill(tmp_path / str(place), place, validation=validation) for place in places]
    results = [one for one in found if one is not None]
    assert len(results) >= 4
    costs = {"usage_by_role"}
    assert all(one.model_dump(exclude=costs) == results[0].model_dump(exclude=costs) for one in results)
