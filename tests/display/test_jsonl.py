import io
import json

from drpo_graph.display import make_display
from drpo_graph.events.schema import Warned, parse_event
from tests.display.sample_events import RUN_ID, run_stopped, sample_events
from tests.support.hostile import HOSTILE


class CountingStream(io.StringIO):
    """Counts its flushes."""

    num_flushes = 0

    def flush(self) -> None:
        self.num_flushes += 1
        super().flush()


def test_each_event_is_one_flushed_line_that_reads_back_as_it_was() -> None:
    out, err = CountingStream(), io.StringIO()
    display = make_display("jsonl", stdout=out, stderr=err, commands=["drpo show x"])
    events = [*sample_events(), run_stopped()]
    display.start()
    for event in events:
        display.handle(event)
    display.stop()
    assert [parse_event(line) for line in out.getvalue().splitlines()] == events
    assert out.num_flushes == len(events)
    assert err.getvalue() == ""


def test_hostile_text_stays_one_line_of_json() -> None:
    out = io.StringIO()
    make_display("jsonl", stdout=out, stderr=out).handle(Warned(run_id=RUN_ID, message=HOSTILE))
    (line,) = out.getvalue().split("\n")[:-1]
    assert json.loads(line)["message"] == HOSTILE
    assert "\x1b" not in line


def test_stream_that_is_not_utf_8_gets_ascii_that_says_the_same() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    event = Warned(run_id=RUN_ID, message="naïve 你好")
    make_display("jsonl", stdout=out, stderr=out).handle(event)
    assert parse_event(raw.getvalue()) == event
