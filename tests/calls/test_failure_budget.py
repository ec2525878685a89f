"""A role whose samples mostly fail stops the run with an error that says so; a few failures, or mended ones, do not."""

import pytest

from drpo_graph.calls.failed_samples import MIN_SAMPLES, WINDOW, FailureBudget
from drpo_graph.errors import TooManyFailuresError
from drpo_graph.records import Failure
from drpo_graph.settings.layers import build_settings
from tests.support.fake_server import Reply
from tests.support.roles import Desk, answer, by_content, parse_answer, serve

REFUSED = Failure(kind="refused", detail="I'd rather not")
UNREADABLE = Failure(kind="unparsable", detail="no score for 'Depth'")


def note(budget: FailureBudget, *outcomes: Failure | None, max_share: float = 0.5) -> None:
    for outcome in outcomes:
        budget.note(outcome, role="critic", max_share=max_share)


def test_more_failures_than_allowed_stop_and_are_told() -> None:
    budget = FailureBudget()
    note(budget, *[UNREADABLE, None] * 10)
    with pytest.raises(TooManyFailuresError) as caught:
        note(budget, REFUSED)
    assert str(caught.value).startswith("11 of the critic model's last 21 samples had no usable reply")
    assert "max_failure_share=0.5" in str(caught.value)
    assert "(unparsable 10, refused 1; the last one: I'd rather not)" in str(caught.value)
    assert (caught.value.role, caught.value.is_resumable) == ("critic", True)
    assert caught.value.share == pytest.approx(11 / 21)


def test_a_few_samples_say_nothing() -> None:
    budget = FailureBudget()
    note(budget, *[REFUSED] * (MIN_SAMPLES - 1))
    with pytest.raises(TooManyFailuresError):
        note(budget, REFUSED)


def test_what_is_long_past_is_forgotten() -> None:
    budget = FailureBudget()
    note(budget, *[None] * 1000)
    note(budget, *[REFUSED] * (WINDOW // 2))
    with pytest.raises(TooManyFailuresError):
        note(budget, REFUSED)


def test_a_sample_that_came_out_never_stops() -> None:
    budget = FailureBudget()
    note(budget, *[REFUSED] * (MIN_SAMPLES - 1), None)


def test_one_lets_everything_fail() -> None:
    note(FailureBudget(), *[REFUSED] * 500, max_share=1.0)


async def ask(desk: Desk, text: str) -> None:
    await desk.models.critic.ask([{"role": "user", "content": text}], parse=parse_answer)


async def test_a_broken_critic_stops_the_run_and_leaves_other_roles_alone() -> None:
    async with serve(by_content({}, Reply(["nothing"]))) as (_, desk):
        for number in range(MIN_SAMPLES - 1):
            await ask(desk, f"bad {number}")
        await desk.models.optimizer.ask([{"role": "user", "content": "bad"}], parse=parse_answer)
        with pytest.raises(TooManyFailuresError, match="last 20 samples"):
            await ask(desk, "bad at last")


async def test_a_reply_that_was_mended_is_no_failed_sample() -> None:
    says = by_content({"could not be used": answer(4)}, Reply(["nothing"]))
    async with serve(says) as (_, desk):
        for number in range(MIN_SAMPLES + 5):
            await ask(desk, f"{number}")
        assert all(key.startswith("reply/") for key in await desk.session.archive.get_all("failures"))


def test_the_budget_is_no_part_of_what_a_run_is_and_off_in_the_published_search() -> None:
    plain, strict = build_settings({"model": "vllm:m"}), build_settings({"model": "vllm:m", "max_failure_share": 0.1})
    assert plain.fingerprint_fields() == strict.fingerprint_fields()
    assert build_settings({"model": "vllm:m", "compat": "drpo"}).max_failure_share == 1.0
