"""Limits are no failures: they are waited out, told, bounded, and cost a call none of its tries."""

from collections.abc import Mapping

import pytest

from drpo_graph.calls.rate_limits import LimitNotices, LimitWait
from drpo_graph.errors import ModelCallError, RunInterruptedError
from drpo_graph.events.schema import Warned
from drpo_graph.models.failures import CallFailure
from tests.support.roles import QUESTION, Desk, answer, by_content, failing, parse_answer, script, serve

RETRIES = 2
LIMIT = "Rate limit reached on tokens per min (TPM)."


async def ask(desk: Desk) -> int | None:
    (sample,) = await desk.models.critic.ask(QUESTION, parse=parse_answer)
    return sample.value


@pytest.mark.parametrize(
    ("words", "headers"),
    [
        (f"{LIMIT} Please try again in 2ms.", {}),
        (LIMIT, {"retry-after-ms": "2"}),
        (LIMIT, {"Retry-After": "0.002"}),
        (LIMIT, {"x-ratelimit-reset-tokens": "2ms"}),
        ("You exceeded your current quota. Please retry in 2ms.", {}),
        # No time is told: waits double.
        (LIMIT, {}),
    ],
)
async def test_limit_costs_no_try(words: str, headers: Mapping[str, str]) -> None:
    limits = [failing(429, words, headers=headers)] * (3 * RETRIES)
    async with serve(script(*limits, answer(4)), max_retries=RETRIES, retry_wait_s=0.001) as (server, desk):
        assert await ask(desk) == 4
        assert len(server.finished) == 3 * RETRIES + 1
    assert desk.ledger.retries_by_kind == {"http_429": 3 * RETRIES}


async def test_other_failures_among_limits_are_counted_as_ever() -> None:
    says = script(*[failing(429), failing(500)] * (RETRIES + 1))
    async with serve(says, max_retries=RETRIES) as (server, desk):
        assert await ask(desk) is None
        assert len(server.finished) == 2 * (RETRIES + 1)


async def test_run_that_waits_for_nothing_spends_its_tries_on_limits() -> None:
    async with serve(by_content({}, failing(429)), max_retries=RETRIES, max_outage_s=0) as (server, desk):
        assert await ask(desk) is None
        assert len(server.finished) == RETRIES + 1


async def test_limit_that_outlasts_the_run_s_patience_ends_it_at_once() -> None:
    says = script(failing(429, f"{LIMIT} Please try again in 23m1s.", headers={}))
    async with serve(says, max_outage_s=600) as (_, desk):
        with pytest.raises(
            ModelCallError, match=r"longer than max_outage_s=600 allows \(http_429: .*--max-outage"
        ) as caught:
            await ask(desk)
    assert caught.value.is_resumable
    assert "\n" not in str(caught.value)
    assert not desk.retries


async def test_limit_without_end_ends_the_run() -> None:
    async with serve(by_content({}, failing(429)), max_outage_s=0.05) as (_, desk):
        with pytest.raises(ModelCallError, match="limits the rate for longer"):
            await ask(desk)
    assert desk.retries


async def test_long_wait_is_announced_and_a_short_one_is_not() -> None:
    says = script(failing(429), failing(429, LIMIT, headers={"Retry-After": "20"}))
    async with serve(says) as (server, desk):
        desk.stop_at_retry(2)
        with pytest.raises(RunInterruptedError):
            await ask(desk)
        (told,) = [event.message for event in desk.events if isinstance(event, Warned)]
        assert told.startswith(f"{server.base_url} limits the rate (http_429: {LIMIT})")
    assert "calls wait 20 s" in told


def test_patience_begins_anew_with_each_reply_of_the_endpoint() -> None:
    now = 0.0
    wait = LimitWait(clock=lambda: now)
    told = CallFailure("http_429", "retry", "slow down", retry_after_s=20.0)
    untold = told._replace(retry_after_s=None)
    assert wait.left_s(told, num_successes=0, max_outage_s=600) == 600
    now = 100.0
    assert wait.left_s(told, num_successes=0, max_outage_s=600) == 500
    assert wait.left_s(untold, num_successes=0, max_outage_s=600) == 20
    assert wait.left_s(untold, num_successes=0, max_outage_s=60) == -40
    assert wait.left_s(told, num_successes=1, max_outage_s=600) == 600


def test_waits_are_news_when_they_double() -> None:
    notices = LimitNotices()
    assert [notices.is_news("a", wait_s) for wait_s in (1, 20, 20, 39, 40, 60)] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert notices.is_news("b", 5)
