import io
import os
import re
import subprocess
import sys
from pathlib import Path

from drpo_graph.display import make_display
from drpo_graph.events.schema import CallFinished, EndpointBack, EndpointLost, Event, Warned
from tests.display.sample_events import COMMANDS, RUN_ID, START, rollout_scored, run_started, run_stopped, sample_events
from tests.support.hostile import HOSTILE, is_inert

LEVEL_LINE = re.compile(
    r"level \d+/\d+  best \d\.\d\d \([\d.]+\)  beam \d\.\d\d( \d\.\d\d)*  children \d+/\d+  unscored \d+  "
    r"calls \d+  tokens \S+  retries \d+  \S+(  eta \S+)?"
)


def lines_of(*events: Event, commands: tuple[str, ...] = ()) -> list[str]:
    out = io.StringIO()
    display = make_display("plain", stdout=out, stderr=io.StringIO(), files=[Path("runs/x")], commands=commands)
    display.start()
    for event in events:
        display.handle(event)
    display.stop()
    return out.getvalue().splitlines()


def test_one_line_per_level() -> None:
    lines = [line for line in lines_of(*sample_events()) if line.startswith("level ")]
    assert [line.split()[1] for line in lines] == ["0/4", "1/4", "2/4", "3/4", "4/4"]
    assert all(LEVEL_LINE.fullmatch(line) for line in lines)
    assert "eta" in lines[2]
    assert "eta" not in lines[4]


def test_start_warnings_validation_and_end_have_a_line_each() -> None:
    lines = lines_of(*sample_events())
    assert lines[0].startswith(f"started  {RUN_ID}  levels 4  beam 2 x 3")
    assert sum(line.startswith("warning: ") for line in lines) == 1
    assert sum(line.startswith("validation  significant improvement  +0.82") for line in lines) == 1
    assert sum(line.startswith(f"done  {RUN_ID}") for line in lines) == 1


def test_resumed_run_says_so() -> None:
    assert lines_of(run_started(is_resumed=True))[0].startswith(f"resumed  {RUN_ID}")


def test_summary_follows_without_commands_that_no_longer_apply() -> None:
    page = "\n".join(lines_of(*sample_events(), commands=COMMANDS))
    assert "best prompt" in page
    assert COMMANDS[1] in page
    assert COMMANDS[0] not in page


def test_no_line_holds_control_codes_or_trailing_blanks() -> None:
    for line in lines_of(*sample_events()):
        assert line.isprintable()
        assert line == line.rstrip()


def test_hostile_text_is_written_inert() -> None:
    lines = lines_of(
        run_started().model_copy(update={"run_id": HOSTILE, "models": {"base": HOSTILE}}),
        rollout_scored(HOSTILE, HOSTILE, level=1, reward=None),
        Warned(run_id=HOSTILE, message=HOSTILE),
        run_stopped().model_copy(update={"message": HOSTILE, "run_id": HOSTILE}),
    )
    assert len(lines) == 4
    assert is_inert("".join(lines))
    assert "[bold]markup[/bold]" in lines[1]


def test_lost_endpoint_and_its_return_have_a_line_each() -> None:
    lost = EndpointLost(
        run_id=RUN_ID, endpoint="http://h/v1", kind="connection", detail="refused", lost_s=0.1, max_outage_s=600
    )
    lines = lines_of(lost, EndpointBack(run_id=RUN_ID, endpoint="http://h/v1", lost_s=72))
    assert lines == [
        "lost http://h/v1 (connection: refused); calls wait for it, 10m00s at most",
        "back http://h/v1 answers again after 1m12s",
    ]


def test_stopped_run_has_the_resume_command_only_where_it_can_be_resumed() -> None:
    assert lines_of(run_stopped())[-1] == f"resume with: drpo resume {RUN_ID}"
    assert lines_of(run_stopped(), commands=COMMANDS)[-1] == f"resume with: {COMMANDS[0]}"
    assert len(lines_of(run_stopped(is_resumable=False))) == 1


def test_stream_without_the_characters_gets_others() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    display = make_display("plain", stdout=out, stderr=io.StringIO())
    for event in sample_events():
        display.handle(event)
    assert b"\\u" not in raw.getvalue()
    assert b"- best prompt" in raw.getvalue()


def test_closed_stream_is_no_error() -> None:
    out = io.StringIO()
    display = make_display("plain", stdout=out, stderr=io.StringIO())
    out.close()
    display.handle(run_started())


def test_reader_that_leaves_does_not_hurt_the_run() -> None:
    program = (
        "import sys\n"
        "from drpo_graph.display import make_display\n"
        "from tests.display.sample_events import sample_events\n"
        "display = make_display(sys.argv[1], stdout=sys.stdout, stderr=sys.stderr)\n"
        "sys.stdin.readline()\n"
        "for event in sample_events(): display.handle(event)\n"
        "sys.stderr.write('the run went on')\n"
    )
    root = Path(__file__).parents[2]
    for kind in ("plain", "jsonl"):
        process = subprocess.Popen(
            [sys.executable, "-c", program, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=root,
            # Buffered, as for users: only then does the interpreter's own flush at exit meet the broken pipe.
            env={**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": ""},
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        said = process.stderr.read()
        process.stderr.close()
        assert (process.wait(timeout=60), said) == (0, "the run went on")


def test_calls_alone_write_nothing() -> None:
    calls = [event for event in sample_events() if isinstance(event, CallFinished)]
    assert calls[0].time > START
    assert lines_of(*calls) == []
