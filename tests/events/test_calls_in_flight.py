"""Who follows the events knows at each moment which calls are in flight, and what for."""

from collections import Counter

import pytest

from drpo_graph.calls.channel import RefusedRequestError
from drpo_graph.errors import DRPOError
from drpo_graph.events.schema import CallFailed, CallFinished, CallRetried, CallStarted, Event
from drpo_graph.models.request import Request
from tests.support.oracle import Oracle, OracleTransport
from tests.support.roles import answer, failing, script, serve
from tests.support.searches import fake_settings, run_search
from tests.support.world import World

_Told = CallStarted | CallFinished | CallFailed | CallRetried
REQUEST = Request(messages=[{"role": "user", "content": "q"}])


def find_in_flight(events: list[Event]) -> Counter[str]:
    """Return how often each call is in flight after these events, by its key."""
    in_flight: Counter[str] = Counter()
    for event in events:
        if isinstance(event, CallStarted):
            in_flight[event.key] += 1
            assert in_flight[event.key] == 1
        elif isinstance(event, CallFailed) or (isinstance(event, CallFinished) and not event.from_ledger):
            in_flight[event.key] -= 1
            assert in_flight[event.key] == 0
    return +in_flight


async def test_each_call_of_a_search_starts_for_something_and_ends() -> None:
    told: list[Event] = []
    settings, world = fake_settings(depth=3, beam_size=2, n_actions=2, queries_per_level=2), World(seed=3)
    seen: list[int] = []
    transport = OracleTransport(Oracle(world), before=lambda _: seen.append(find_in_flight(told).total()))
    await run_search(settings, world, world.train_queries, sinks=(told.append,), transport=transport)
    assert not find_in_flight(told)
    # The call whose request is sent is known to be in flight by then.
    assert min(seen) >= 1
    started = [event for event in told if isinstance(event, CallStarted)]
    assert len(started) == len(transport.requests)
    candidates = {event.candidate_id for event in told if event.type == "candidate_created"}
    for event in started:
        assert (event.candidate_id in candidates) or event.role == "metrics"
        assert (event.query_id is not None) == (event.role != "optimizer")
        assert event.level is not None or event.role == "metrics"


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([answer(4)], [CallStarted, CallFinished]),
        ([failing(503), answer(4)], [CallStarted, CallRetried, CallFinished]),
        ([answer(4), failing(400)], [CallStarted, CallFinished, CallStarted, CallFailed]),
        ([failing(401)], [CallStarted, CallFailed]),
    ],
    ids=["answered", "retried", "refused", "wrong key"],
)
async def test_a_call_that_is_tried_again_starts_once_and_one_that_is_refused_ends(
    replies: list[object], expected: list[type[Event]]
) -> None:
    async with serve(script(*replies)) as (_, desk):  # type: ignore[arg-type]
        channel = desk.models.base.channel
        for number in range(sum(one is CallStarted for one in expected)):
            key = channel.key_of(REQUEST, attempt=number)
            try:
                await channel.call(key, REQUEST)
            except (DRPOError, RefusedRequestError):
                assert expected[-1] is CallFailed
            # The second time it comes from the ledger, and nothing is in flight.
            if desk.ledger.holds(key):
                await channel.call(key, REQUEST)
        events = [one for one in desk.events if isinstance(one, _Told) and not getattr(one, "from_ledger", False)]
        assert [type(one) for one in events] == expected
        assert not find_in_flight(desk.events)
        keys = {one.key for one in events}
        assert len(keys) == sum(one is CallStarted for one in expected)
