"""Failed tries are counted once each, however the call ended that they belong to."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from langgraph.store.memory import InMemoryStore

from drpo_graph.errors import ModelCallError, RunInterruptedError
from tests.support.fake_server import FakeServer, FaultPlan
from tests.support.roles import SCORE_SCHEMA, Desk, answer, by_content, failing, open_desk, parse_answer, script, serve


async def noted(desk: Desk) -> Counter[str]:
    """Return what failed of calls that have no record, by kind."""
    counts: Counter[str] = Counter()
    for key, stored in (await desk.session.archive.get_all("failures")).items():
        if key.startswith("sample/"):
            continue
        assert key.startswith("call/")
        counts.update({kind: number for kind, number in stored.items() if isinstance(number, int)})
    return counts


@pytest.mark.parametrize("ending", ["overdue", "stopped"])
async def test_failed_tries_of_calls_that_an_outage_or_a_stop_ended_stay_counted(ending: str) -> None:
    store, faults = InMemoryStore(), FaultPlan(1.0, kinds=("503",), max_per_request=100)
    values: dict[str, Any] = {"store": store, "retry_wait_s": 0.02, "max_outage_s": 0.3 if ending == "overdue" else 60}
    async with FakeServer(by_content({}, answer(4))) as server:

        async def ask_all(desk: Desk) -> list[object]:
            asked = (desk.models.critic.ask([{"role": "user", "content": text}], parse=parse_answer) for text in "abc")
            return await asyncio.gather(*asked, return_exceptions=True)

        desk = await open_desk(server.base_url, **values)
        await desk.models.base.respond([{"role": "user", "content": "Early"}])
        object.__setattr__(server.options, "faults", faults)
        asking = asyncio.create_task(ask_all(desk))
        if ending == "stopped":
            while len(desk.retries) < 8:
                await asyncio.sleep(0.005)
            desk.context.stop.request("enough")
        assert {type(one) for one in await asking} == {ModelCallError if ending == "overdue" else RunInterruptedError}
        await desk.ledger.drain()
        num_failed = len(server.finished) - 1
        assert await noted(desk) == {"http_503": num_failed}
        object.__setattr__(server.options, "faults", None)
        again = await open_desk(server.base_url, **values)
        assert not [one for one in await ask_all(again) if isinstance(one, BaseException)]
    assert await noted(again) == {"http_503": num_failed}
    assert not again.ledger.retries_by_kind


async def test_tries_are_added_up_when_a_call_is_given_up_again() -> None:
    says = by_content({"poison": failing(500, "boom")}, answer(4))
    async with serve(says, max_retries=2, retry_wait_s=0.001) as (_, desk):
        for text in ("one", "poison", "two", "poison", "three"):
            await desk.models.critic.ask([{"role": "user", "content": text}], parse=parse_answer)
    assert await noted(desk) == {"http_500": 6}


async def test_tries_before_a_refusal_stay_counted_when_the_call_is_sent_in_another_form() -> None:
    says = script(failing(429), failing(429), failing(400, "response_format is not supported"), answer(4))
    async with serve(says, retry_wait_s=0.001) as (_, desk):
        question = [{"role": "user", "content": "one"}]
        await desk.models.critic.ask(question, parse=parse_answer, schema=SCORE_SCHEMA)  # type: ignore[arg-type]
    assert await noted(desk) == {"http_429": 2}
