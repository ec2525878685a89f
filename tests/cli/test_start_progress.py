"""What is shown while a server starts."""

import io

import pytest

from drpo_graph.cli.model_server import StartProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_than_on_a_terminal_a_line_comes_every_ten_seconds() -> None:
    stream = io.StringIO()
    with StartProgress("starting m", stream) as progress:
        for elapsed_s in range(25):
            progress.show(float(elapsed_s), f"\x1b[2Jpart {elapsed_s}")
    assert stream.getvalue().splitlines() == ["starting m", "starting m: 10 s: part 10", "starting m: 20 s: part 20"]


def test_a_long_line_is_cut() -> None:
    stream = io.StringIO()
    with StartProgress("starting m", stream) as progress:
        progress.show(60.0, "x" * 1000)
    assert max(map(len, stream.getvalue().splitlines())) == 160


def test_a_terminal_shows_one_line_that_changes_and_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    with StartProgress("starting m", stream) as progress:
        progress.show(3.0, "part 3 " + "x" * 200)
        assert progress._status is not None
        progress._status._live.refresh()
    shown = stream.getvalue()
    assert "starting m: 3 s: part 3" in shown
    assert "x" * 60 not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_without_a_stream_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with StartProgress("starting m", None) as progress:
        progress.show(60.0, "part")
    assert capsys.readouterr() == ("", "")
