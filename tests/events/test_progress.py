"""What events say about the rest of a run, and that each tells it with the time that was worked."""

from itertools import pairwise

import pytest

from drpo_graph import Settings
from drpo_graph.events.base import ProgressEvent
from drpo_graph.events.progress import Progress
from drpo_graph.events.schema import Event, LevelFinished, RunStarted, RunStopped
from tests.display.sample_events import START, rollout_scored, run_started
from tests.display.test_collection import started as collection_started
from tests.display.test_collection import tried
from tests.display.test_examples import finished as example_finished
from tests.display.test_examples import started as examples_started
from tests.display.test_view import level_finished, level_started
from tests.events.test_numbering import run_in_parts, settings  # noqa: F401  # A fixture.

RESUMED = run_started(is_resumed=True).model_copy(update={"time": START + 9000})
EXAMPLES = [example_finished(f"icl-{one}", 2.0, 4.0, at=10) for one in (1, 2, 2)]
OUTCOMES = (1.0, 0.5, None, 0.0)
TRIALS = [*(tried("p0", one) for one in OUTCOMES), tried("p0", 1.0, was_unlabelled=True)]


@pytest.mark.parametrize(
    ("events", "at", "expected"),
    [
        ([run_started(), level_started(0, time=START), level_finished(0, time=START + 5)], 5, None),
        ([run_started(), level_started(1, time=START + 10)], 15, None),
        ([run_started(), level_started(1, time=START + 10), level_finished(1, time=START + 30)], 30, 3 * 20),
        (
            [
                run_started(),
                level_started(1, time=START + 10),
                level_finished(1, time=START + 30),
                level_started(2, time=START + 30),
            ],
            38,
            3 * 20 - 8,
        ),
        ([run_started(), level_started(1, time=START), RESUMED, level_finished(1, time=START + 9010)], 9010, None),
        ([rollout_scored("3.0.0", "q-1", level=3, reward=4.0), level_finished(3)], 0, None),
        # Two of four took 30 seconds; the rest takes about as long as these did.
        ([examples_started(), *EXAMPLES], 30, 30),
        # Four of forty took 30 seconds.
        ([collection_started(), *TRIALS], 30, 270),
        ([collection_started()], 30, None),
    ],
    ids=["root", "begun", "level", "in a level", "pause", "unseen start", "examples", "trials", "no trial"],
)
def test_rest_goes_by_what_is_done(events: list[Event], at: float, expected: float | None) -> None:
    progress = Progress()
    for event in events:
        progress.take(event)
    assert progress.remaining_s(START + at) == expected


async def test_events_tell_the_time_worked_over_processes_and_the_rest(settings: Settings) -> None:  # noqa: F811
    told = await run_in_parts(settings)
    stopped_at = next(place for place, one in enumerate(told) if isinstance(one, RunStopped))
    # The very last one is told by a process that does no work.
    first, second = told[: stopped_at + 1], told[stopped_at + 1 : -1]
    for part in (first, second):
        assert all(one.elapsed_s <= other.elapsed_s for one, other in pairwise(part))
    resumed = second[0]
    assert isinstance(resumed, RunStarted)
    assert resumed.elapsed_s >= resumed.former_s > 0
    assert second[-1].elapsed_s > first[-1].elapsed_s
    # Each process goes by its own levels, of which none is finished at first.
    for part in (first, second):
        assert next(one for one in part if isinstance(one, ProgressEvent)).remaining_s is None
    rest = [one.remaining_s for one in second if isinstance(one, LevelFinished)]
    assert rest[-2] is not None
    assert rest[-2] > 0
