"""The Python block of docs/events.md runs."""

import pytest

from tests.docs.snippets import read_snippets, run_snippet

GUIDE = "docs/events.md"


@pytest.mark.usefixtures("world")
def test_snippet_follows_a_run_to_its_texts(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = read_snippets(GUIDE)
    namespace: dict[str, object] = {"__name__": "snippet"}
    run_snippet(snippet, GUIDE, namespace)
    assert isinstance(namespace["last"], int)
    assert namespace["last"] > 20
    assert "MetricScore(" in capsys.readouterr().out
