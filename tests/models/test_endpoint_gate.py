"""How many calls an endpoint gets at once and per second, whoever asks, gives up or is cancelled."""

import asyncio
import random
import time

import pytest

from drpo_graph.models.endpoint_gate import EndpointGate, gate_for


def open_gate(max_concurrency: int = 4, requests_per_second: float | None = None) -> EndpointGate:
    return EndpointGate(max_concurrency=max_concurrency, requests_per_second=requests_per_second)


class Worker:
    """Holds a slot until told to go; all workers of a gate share one list of who got in."""

    def __init__(self, gate: EndpointGate, name: int, entered: list[int]) -> None:
        self.may_go = asyncio.Event()
        self.task = asyncio.create_task(self._work(gate, name, entered))

    async def _work(self, gate: EndpointGate, name: int, entered: list[int]) -> None:
        async with gate.slot():
            entered.append(name)
            await self.may_go.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_the_limit_in_flight_and_first_come_first_served() -> None:
    gate = open_gate(3)
    entered: list[int] = []
    workers = [Worker(gate, name, entered) for name in range(9)]
    await settle()
    assert entered == [0, 1, 2]
    for name in (1, 0, 2, 4, 3, 5):
        workers[name].may_go.set()
        await settle()
        assert gate.num_in_flight == 3
    assert entered == list(range(9))
    for worker in workers:
        worker.may_go.set()
    await asyncio.gather(*(worker.task for worker in workers))
    assert gate.num_in_flight == 0


async def test_newcomer_does_not_overtake_those_who_wait() -> None:
    gate = open_gate(1)
    entered: list[int] = []
    first, second = Worker(gate, 1, entered), Worker(gate, 2, entered)
    await settle()
    first.may_go.set()
    third = Worker(gate, 3, entered)
    await settle()
    assert entered == [1, 2]
    for worker in (second, third):
        worker.may_go.set()
    await asyncio.gather(second.task, third.task)
    assert entered == [1, 2, 3]


async def test_call_that_fails_gives_its_place_back() -> None:
    gate = open_gate(1)
    for _ in range(3):
        with pytest.raises(KeyError):
            async with gate.slot():
                raise KeyError
    assert gate.num_in_flight == 0


# Overload


async def test_overload_halves_the_limit_once_per_window_and_successes_open_it_again() -> None:
    gate = open_gate(8)
    for _ in range(8):  # All that were in flight are told the same.
        gate.note_overload(pause_s=0)
    assert gate.limit == 4
    gate.note_success()
    gate.note_overload(pause_s=0)
    assert gate.limit == 2
    for _ in range(2):
        gate.note_success()
    assert gate.limit == 3
    for _ in range(3 + 4 + 5 + 6 + 7 + 8):
        gate.note_success()
    assert gate.limit == 8


async def test_limit_never_falls_below_one_call() -> None:
    gate = open_gate(2)
    for _ in range(5):
        gate.note_overload(pause_s=0)
        gate.note_success()
    assert gate.limit >= 1
    async with gate.slot():
        pass


async def test_halved_limit_lets_the_calls_in_flight_end_first() -> None:
    gate = open_gate(4)
    entered: list[int] = []
    workers = [Worker(gate, name, entered) for name in range(6)]
    await settle()
    gate.note_overload(pause_s=0)
    for name in range(2):
        workers[name].may_go.set()
        await settle()
    assert entered == [0, 1, 2, 3]
    workers[2].may_go.set()
    await settle()
    assert entered == [0, 1, 2, 3, 4]
    for worker in workers:
        worker.may_go.set()
    await asyncio.gather(*(worker.task for worker in workers))


async def test_success_admits_a_waiter_when_it_opens_the_gate() -> None:
    gate = open_gate(2)
    entered: list[int] = []
    gate.note_overload(pause_s=0)
    workers = [Worker(gate, name, entered) for name in range(2)]
    await settle()
    assert entered == [0]
    gate.note_success()
    await settle()
    assert entered == [0, 1]
    for worker in workers:
        worker.may_go.set()
    await asyncio.gather(*(worker.task for worker in workers))


async def test_pause_holds_everything_and_may_be_prolonged() -> None:
    gate = open_gate(8)
    entered: list[int] = []
    started = time.monotonic()
    gate.note_overload(pause_s=0.1)
    workers = [Worker(gate, name, entered) for name in range(3)]
    await asyncio.sleep(0.05)
    assert entered == []
    gate.note_overload(pause_s=0.15)
    gate.note_overload(pause_s=0.0)  # A shorter one does not cut it.
    for worker in workers:
        worker.may_go.set()
    await asyncio.gather(*(worker.task for worker in workers))
    assert time.monotonic() - started >= 0.2


async def test_pause_that_begins_while_a_call_waits_for_its_turn_holds_it_too() -> None:
    gate = open_gate(8, 2.5)
    entered: list[int] = []
    workers = [Worker(gate, name, entered) for name in range(3)]
    for worker in workers:
        worker.may_go.set()
    await settle()
    assert entered == [0, 1]
    gate.note_overload(pause_s=1.0)  # Longer than the rate makes the third one wait.
    started = time.monotonic()
    await workers[2].task
    assert time.monotonic() - started >= 1.0


# Rate


@pytest.mark.parametrize(("rate", "num_calls"), [(50.0, 60), (12.5, 20)])
async def test_rate_holds_in_every_window(rate: float, num_calls: int) -> None:
    gate = open_gate(64, rate)
    times: list[float] = []

    async def call() -> None:
        async with gate.slot():
            times.append(time.monotonic())

    await asyncio.gather(*(call() for _ in range(num_calls)))
    whole = int(rate)
    window_s = whole / rate
    # The clock is read a moment after the turn was taken.
    late_s = 0.02
    for index, began in enumerate(times):
        assert sum(began <= one < began + window_s - late_s for one in times[index:]) <= whole
    assert times[-1] - times[0] >= (num_calls - 1) // whole * window_s * 0.9


async def test_rate_below_one_is_one_call_per_longer_period() -> None:
    gate = open_gate(4, 0.1)
    entered: list[int] = []
    workers = [Worker(gate, name, entered) for name in range(2)]
    await asyncio.sleep(0.1)
    assert entered == [0]
    workers[0].may_go.set()
    workers[1].task.cancel()
    await asyncio.gather(*(worker.task for worker in workers), return_exceptions=True)
    assert gate.num_in_flight == 0


# Cancellation


@pytest.mark.parametrize("seed", range(20))
async def test_cancelled_waiters_leak_no_place(seed: int) -> None:
    rng = random.Random(seed)
    gate = open_gate(rng.randint(1, 4))
    most = 0

    async def call() -> None:
        nonlocal most
        async with gate.slot():
            most = max(most, gate.num_in_flight)
            for _ in range(rng.randint(0, 3)):
                await asyncio.sleep(0)
            if rng.random() < 0.1:
                raise ConnectionError

    tasks: list[asyncio.Task[None]] = []
    for _ in range(200):
        tasks.append(asyncio.create_task(call()))
        chance = rng.random()
        if chance < 0.3:
            rng.choice(tasks).cancel()
        elif chance < 0.35:
            gate.note_overload(pause_s=0)
        elif chance < 0.5:
            gate.note_success()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError, ConnectionError}
    assert gate.num_in_flight == 0
    assert most <= gate.max_concurrency
    entered: list[int] = []
    workers = [Worker(gate, name, entered) for name in range(gate.max_concurrency + 1)]
    await settle()
    assert len(entered) == gate.limit
    for worker in workers:
        worker.may_go.set()
    await asyncio.gather(*(worker.task for worker in workers))


@pytest.mark.parametrize("rate", [None, 0.01])
async def test_call_cancelled_in_a_pause_or_before_its_turn_gives_its_place_back(rate: float | None) -> None:
    gate = open_gate(1, rate)
    entered: list[int] = []
    if rate is None:
        gate.note_overload(pause_s=60)
    else:
        async with gate.slot():
            pass
    worker = Worker(gate, 0, entered)
    await settle()
    worker.task.cancel()
    await asyncio.gather(worker.task, return_exceptions=True)
    assert (gate.num_in_flight, entered) == (0, [])


# One gate per endpoint


async def test_runs_share_the_gate_of_an_endpoint() -> None:
    gate = gate_for("http://a", max_concurrency=4, requests_per_second=None)
    assert gate_for("http://a", max_concurrency=4, requests_per_second=None) is gate
    assert gate_for("http://b", max_concurrency=4, requests_per_second=None) is not gate
    assert gate_for("http://a", max_concurrency=4, requests_per_second=2) is not gate


async def test_another_limit_takes_effect_at_once_and_an_overload_is_not_forgotten() -> None:
    gate = gate_for("http://a", max_concurrency=1, requests_per_second=None)
    entered: list[int] = []
    workers = [Worker(gate, name, entered) for name in range(3)]
    await settle()
    gate_for("http://a", max_concurrency=8, requests_per_second=None)
    await settle()
    assert entered == [0, 1, 2]
    gate.note_overload(pause_s=0)
    gate_for("http://a", max_concurrency=6, requests_per_second=None)
    assert (gate.limit, gate.max_concurrency) == (4, 6)
    for worker in workers:
        worker.may_go.set()
    await asyncio.gather(*(worker.task for worker in workers))


def test_event_loops_have_gates_of_their_own() -> None:
    async def find() -> EndpointGate:
        return gate_for("http://a", max_concurrency=4, requests_per_second=None)

    assert asyncio.run(find()) is not asyncio.run(find())
