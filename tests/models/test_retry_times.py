"""When to ask again: read from words and headers in the forms in which servers tell it."""

import time
from datetime import UTC, datetime

import httpx
import openai
import pytest

from drpo_graph.models.failures import CallFailure, classify_failure
from drpo_graph.models.retry_times import read_reset, read_told_wait


def limited(
    message: str = "Rate limit reached.", *, code: str = "", headers: dict[str, str] | None = None
) -> CallFailure:
    request = httpx.Request("POST", "http://test/v1/chat/completions")
    body = {"error": {"message": message, "code": code}}
    response = httpx.Response(429, json=body, headers=headers, request=request)
    failure = classify_failure(openai.RateLimitError("Error code: 429", response=response, body=body["error"]))  # type: ignore[arg-type]
    assert failure is not None
    return failure


@pytest.mark.parametrize(
    ("words", "wait_s"),
    [
        ("Rate limit reached for m on tokens per min (TPM): Limit 30000, Used 29000. Please try again in 1.5s.", 1.5),
        ("Limit: 3 / min. Please try again in 20s. Contact us if you continue to have issues.", 20),
        ("Please retry in 20 seconds", 20),
        ("Requests to this deployment have exceeded its rate. Please retry after 7 seconds.", 7),
        ("Please try again in 6m0s.", 360),
        ("Please try again in 850ms.", 0.85),
        ("Please try again in 1m30.5s", 90.5),
        ("try again in 2 minutes and 5 seconds", 125),
        ("Wait 1 hour before the next request", 3600),
        ("Please try again in 2 days", 3600),
        ("Quota exceeded for metric: requests, limit: 15. Please retry in 36.2s.", 36.2),
        ("Limit resets in 12s", 12),
        ("Rate limit reached: 3 requests per 20s", None),
        ("Too many requests, try again later", None),
        ("Try again at 12:30", None),
        ("Retry 3 metrics", None),
        ("", None),
    ],
)
def test_wait_is_read_from_words(words: str, wait_s: float | None) -> None:
    assert read_told_wait({}, words) == pytest.approx(wait_s)
    assert limited(words or "Slow down.").retry_after_s == pytest.approx(wait_s)


@pytest.mark.parametrize(
    ("headers", "words", "wait_s"),
    [
        ({"x-ratelimit-reset-tokens": "6m0s"}, "", 360),
        ({"x-ratelimit-reset-requests": "850ms"}, "", 0.85),
        ({"x-ratelimit-reset": "30"}, "", 30),
        ({"ratelimit-reset": "59.5"}, "", 59.5),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "40s"}, "on tokens per min", 40),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "40s"}, "too fast", 1),
        (
            {
                "x-ratelimit-reset-requests": "20s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "1s",
                "x-ratelimit-remaining-tokens": "900",
            },
            "",
            20,
        ),
        ({"x-ratelimit-reset": "soon"}, "", None),
        ({"x-ratelimit-limit-tokens": "30000"}, "", None),
        ({}, "", None),
    ],
)
def test_wait_is_read_from_headers_of_limits(headers: dict[str, str], words: str, wait_s: float | None) -> None:
    assert read_reset(headers, words) == pytest.approx(wait_s)
    assert limited(words or "Slow down.", headers=headers).retry_after_s == pytest.approx(wait_s)


def test_reset_may_be_a_time() -> None:
    later = time.time() + 100
    stamps = [f"{later:.0f}", f"{later * 1000:.0f}", datetime.fromtimestamp(later, UTC).isoformat()]
    waits = [read_reset({"x-ratelimit-reset": stamp}, "") for stamp in stamps]
    assert all(wait is not None and 50 < wait <= 101 for wait in waits)


def test_header_goes_before_words_and_words_before_a_reset() -> None:
    reset = {"x-ratelimit-reset-tokens": "40s"}
    assert limited("Please try again in 9s", headers={"Retry-After": "7", **reset}).retry_after_s == 7
    assert limited("Please try again in 9s", headers=reset).retry_after_s == 9
    # "At once" is no answer.
    assert limited("Please try again in 9s", headers={"Retry-After": "0"}).retry_after_s == 9


def test_spent_account_says_no_time() -> None:
    words = "You exceeded your current quota, please check your plan and billing details."
    told = limited(f"{words} Please retry in 1.5s.", code="RESOURCE_EXHAUSTED")
    assert (told.kind, told.remedy, told.retry_after_s) == ("http_429", "retry", 1.5)
    for spent in (
        limited(words, headers={"retry-after-ms": "1"}),
        limited("No credit", code="insufficient_quota", headers={"x-ratelimit-reset-tokens": "1s"}),
        limited("Your credit balance is too low to access the API."),
    ):
        assert (spent.kind, spent.remedy) == ("quota", "stop")


def test_request_larger_than_a_window_is_not_waited_for() -> None:
    failure = limited("Request too large for m on tokens per min (TPM): Limit 30000, Requested 40000.")
    assert (failure.remedy, failure.is_overlong) == ("reject", True)
