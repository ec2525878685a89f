"""Work that several ask for at the same time is done once."""

import asyncio
import gc

import pytest

from drpo_graph.stop import SingleFlight


class Work:
    """Work that ends when told to, and counts how often it was begun."""

    def __init__(self, error: Exception | None = None) -> None:
        self.num_begun = 0
        self.may_end = asyncio.Event()
        self._error = error

    async def __call__(self) -> int:
        self.num_begun += 1
        await self.may_end.wait()
        if self._error is not None:
            raise self._error
        return self.num_begun


async def test_those_who_ask_at_the_same_time_share_the_result_and_later_ones_do_not() -> None:
    flight, work = SingleFlight[str, int](), Work()
    waiters = [asyncio.create_task(flight.share("a", work)) for _ in range(3)]
    other = asyncio.create_task(flight.share("b", Work()))
    await asyncio.sleep(0)
    assert set(flight.tasks) == {"a", "b"}
    work.may_end.set()
    assert await asyncio.gather(*waiters) == [1, 1, 1]
    assert set(flight.tasks) == {"b"}
    assert await flight.share("a", work) == 2
    other.cancel()


async def test_work_goes_on_when_those_who_wait_are_cancelled() -> None:
    flight, work = SingleFlight[str, int](), Work()
    first, second = (asyncio.create_task(flight.share("a", work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.may_end.set()
    assert (await second, work.num_begun) == (1, 1)


async def test_error_reaches_all_who_wait_and_the_work_may_be_done_again() -> None:
    flight, work = SingleFlight[str, int](), Work(ValueError("boom"))
    work.may_end.set()
    found = await asyncio.gather(*(flight.share("a", work) for _ in range(3)), return_exceptions=True)
    assert [str(one) for one in found] == ["boom"] * 3
    assert work.num_begun == 1
    assert not flight.tasks
    with pytest.raises(ValueError, match="boom"):
        await flight.share("a", work)
    assert work.num_begun == 2


async def test_error_that_nobody_waits_for_any_more_leaves_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()
    caplog.clear()  # What other tests have left behind.
    flight, work = SingleFlight[str, int](), Work(ValueError("boom"))
    waiter = asyncio.create_task(flight.share("a", work))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    work.may_end.set()
    await asyncio.wait(flight.tasks.values())
    gc.collect()
    assert not flight.tasks
    assert not caplog.records


async def test_work_that_is_cancelled_itself_is_forgotten_too() -> None:
    flight = SingleFlight[str, int]()
    waiter = asyncio.create_task(flight.share("a", Work()))
    await asyncio.sleep(0)
    flight.tasks["a"].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert not flight.tasks


async def test_one_piece_of_work_may_be_for_several_keys() -> None:
    flight, work = SingleFlight[str, int](), Work()
    task = flight.begin(["a", "b"], work())
    sharing = asyncio.create_task(flight.share("b", Work()))
    await asyncio.sleep(0)
    work.may_end.set()
    assert (await task, await sharing) == (1, 1)
    assert not flight.tasks
