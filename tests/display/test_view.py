from collections import deque

import pytest

from drpo_graph.display.view import MAX_HISTORY, MAX_KINDS, MAX_MESSAGES, RATE_WINDOW_S, RunView
from drpo_graph.events.schema import (
    BeamEntry,
    CallFinished,
    CallRetried,
    EndpointBack,
    EndpointLost,
    LevelFinished,
    LevelStarted,
    Warned,
)
from drpo_graph.records import Usage
from tests.display.sample_events import (
    MODELS,
    RUN_ID,
    START,
    rollout_scored,
    run_started,
    run_stopped,
    sample_events,
    view_of,
)


def level_started(level: int, *, time: float, max_depth: int = 4, num_rollouts: int = 30) -> LevelStarted:
    return LevelStarted(
        run_id=RUN_ID, time=time, level=level, max_depth=max_depth, query_ids=("q",), num_rollouts=num_rollouts
    )


def level_finished(
    level: int, *, time: float = START, path_reward: float | None = 4.0, max_depth: int = 4, is_easy: bool = False
) -> LevelFinished:
    entry = BeamEntry(candidate_id=f"{level}.0.0", reward=path_reward, path_reward=path_reward, origin="rewrite")
    return LevelFinished(
        run_id=RUN_ID,
        time=time,
        level=level,
        max_depth=max_depth,
        beam=(entry,),
        num_children=6,
        num_unscored=0,
        is_easy=is_easy,
        usage=Usage(calls=100),
    )


def call_finished(*, time: float = START, from_ledger: bool = False) -> CallFinished:
    return CallFinished(
        run_id=RUN_ID,
        time=time,
        role="critic",
        model="m",
        key="k",
        num_samples=1,
        duration_s=1,
        usage=Usage(calls=1, prompt_tokens=100, completion_tokens=10),
        from_ledger=from_ledger,
    )


def test_whole_run_is_folded_into_what_it_was() -> None:
    events = sample_events()
    view = view_of(*events)
    assert (view.run_id, view.models, view.phase) == (RUN_ID, MODELS, "done")
    assert (view.level, view.max_depth, view.levels_done) == (4, 4, 4)
    assert len(view.rollouts) == view.num_rollouts == 30
    assert len(view.beam) == 2
    assert list(view.history) == [0, 1, 2, 3, 4]
    num_calls = sum(isinstance(event, CallFinished) for event in events)
    assert view.process_usage.calls == view.usage.calls == num_calls
    assert view.calls["critic"].usage.cached_tokens > 0
    assert view.retries_by_kind == {"http_429": 1}
    assert view.failures_by_kind == {"unparsable": 1}
    assert view.elapsed_s(now=0) == pytest.approx(events[-1].time - START)


def test_repeated_rollout_counts_once() -> None:
    rollout = rollout_scored("1.0.0", "q-1", level=1, reward=None)
    view = view_of(level_started(1, time=START), rollout, rollout)
    assert (len(view.rollouts), view.num_unscored, view.failures_by_kind["unparsable"]) == (1, 1, 1)


def test_level_that_starts_again_after_a_resume_keeps_its_rollouts() -> None:
    first = rollout_scored("1.0.0", "q-1", level=1, reward=3.0)
    second = rollout_scored("1.0.1", "q-1", level=1, reward=3.0)
    started = level_started(1, time=START)
    assert len(view_of(started, first, run_started(is_resumed=True), started, second).rollouts) == 2


def test_level_whose_start_was_not_seen_is_followed_with_unknown_size() -> None:
    view = view_of(run_started(is_resumed=True), rollout_scored("3.0.0", "q-1", level=3, reward=4.0))
    assert (view.level, view.phase, len(view.rollouts), view.num_rollouts) == (3, "level", 1, None)
    view.apply(level_finished(3))
    assert (view.level, view.is_level_finished) == (3, True)


def test_run_without_a_first_event_begins_with_what_comes() -> None:
    view = view_of(rollout_scored("3.0.0", "q-1", level=3, reward=4.0).model_copy(update={"elapsed_s": 30.0}))
    assert view.run_id == RUN_ID
    assert view.elapsed_s(START + 7) == pytest.approx(37)


def test_rollouts_after_the_last_level_are_no_children_of_it() -> None:
    view = view_of(level_started(4, time=START), level_finished(4), rollout_scored("0", "v-1", level=4, reward=3.0))
    assert (view.phase, len(view.rollouts), view.num_late_rollouts) == ("choosing", 0, 1)


def test_remaining_time_is_what_was_told_last_less_the_time_since() -> None:
    view = view_of(run_started(), level_started(1, time=START))
    assert view.remaining_s(START + 5) is None
    view.apply(level_finished(1, time=START + 20).model_copy(update={"remaining_s": 60.0}))
    assert [view.remaining_s(START + at) for at in (10, 20, 28, 99)] == [60, 60, 52, 0]
    view.apply(run_started(is_resumed=True))
    assert view.remaining_s(START + 28) is None


def test_pause_before_a_resume_is_no_part_of_the_elapsed_time() -> None:
    view = view_of(run_started(), level_started(1, time=START))
    view.apply(run_started(is_resumed=True).model_copy(update={"time": START + 9000}))
    view.apply(level_finished(1, time=START + 9010))
    assert view.elapsed_s(START + 9010) == pytest.approx(10)


def test_first_level_replaces_the_root_as_best_and_later_ones_must_be_better() -> None:
    view = view_of(level_finished(0, path_reward=4.4), level_finished(1, path_reward=3.9))
    assert view.best is not None
    assert view.best.candidate_id == "1.0.0"
    view.apply(level_finished(2, path_reward=3.7))
    view.apply(level_finished(3, path_reward=None))
    assert view.best.candidate_id == "1.0.0"
    view.apply(level_finished(4, path_reward=4.1))
    assert view.best.candidate_id == "4.0.0"
    assert view.history == {0: 4.4, 1: 3.9, 2: 3.7, 3: None, 4: 4.1}


def test_call_from_the_ledger_costs_nothing_and_is_counted_apart() -> None:
    view = view_of(call_finished(), call_finished(from_ledger=True))
    assert (view.process_usage.calls, view.usage.prompt_tokens, view.num_from_ledger) == (1, 100, 1)


def test_call_that_does_not_tell_its_usage_counts_as_one() -> None:
    view = view_of(call_finished().model_copy(update={"usage": Usage(prompt_tokens=7)}))
    assert (view.usage.calls, view.usage.prompt_tokens) == (1, 7)


def test_usage_of_former_processes_joins_with_the_first_finished_level() -> None:
    view = view_of(call_finished(), level_finished(3), call_finished())
    assert (view.usage.calls, view.process_usage.calls) == (101, 2)


def test_rate_counts_the_calls_of_the_window_only() -> None:
    view = view_of(run_started(), *(call_finished(time=START + i / 10) for i in range(100)))
    assert view.calls_per_s(START + 10) == pytest.approx(10)
    assert view.calls_per_s(START + 10 + 2 * RATE_WINDOW_S) == 0


def test_rate_takes_a_call_that_arrives_out_of_order() -> None:
    view = view_of(run_started(), call_finished(time=START + 9), call_finished(time=START + 4))
    assert view.calls_per_s(START + 10) == pytest.approx(0.2)


def test_easy_level_moves_the_goal_and_says_so() -> None:
    view = view_of(level_started(2, time=START), level_finished(2, max_depth=5, is_easy=True))
    assert view.max_depth == 5
    assert "easy" in view.messages[-1].text


def test_stopped_run_keeps_why_and_its_clock_stands_still() -> None:
    view = view_of(run_started(), run_stopped())
    assert view.phase == "failed"
    assert view.stopped is not None
    assert view.elapsed_s(START + 500) == pytest.approx(60)
    assert view.remaining_s(START + 500) is None


def test_long_run_takes_bounded_memory() -> None:
    view = RunView()
    for i in range(3000):
        retry = CallRetried(run_id=RUN_ID, role="base", model="m", kind=f"kind {i}", attempt=1, wait_s=1)
        for event in (
            level_started(i, time=START + i, max_depth=3000),
            rollout_scored("c", f"q-{i}", level=i, reward=None),
            call_finished(time=START + i),
            retry,
            Warned(run_id=RUN_ID, message="w" * 10_000),
            level_finished(i, time=START + i + 1, max_depth=3000),
        ):
            view.apply(event)
    assert view.num_retries == 3000
    assert len(view.retries_by_kind) <= MAX_KINDS + 1
    assert len(view.history) == MAX_HISTORY
    assert len(view.messages) == MAX_MESSAGES
    assert max(len(message.text) for message in view.messages) <= 500
    assert len(view.rollouts) == 1
    for name in view.__slots__:
        value = getattr(view, name)
        assert not isinstance(value, deque) or value.maxlen is not None


def test_lost_endpoint_shows_until_it_is_back() -> None:
    lost = EndpointLost(run_id=RUN_ID, endpoint="e", kind="timeout", detail="slow", lost_s=1, max_outage_s=60)
    view = view_of(run_started(), lost)
    assert view.lost_endpoints == {"e"}
    assert "calls wait for it" in view.messages[-1].text
    view.apply(EndpointBack(run_id=RUN_ID, endpoint="e", lost_s=5))
    assert not view.lost_endpoints
