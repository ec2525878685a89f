"""The Python blocks of docs/langgraph.md run, one after the other."""

import pytest

from tests.docs.snippets import read_snippets, run_snippet

GUIDE = "docs/langgraph.md"


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol on Pregel is experimental")
@pytest.mark.usefixtures("world")
def test_snippets_run() -> None:
    namespace: dict[str, object] = {"__name__": "snippet"}
    for snippet in read_snippets(GUIDE):
        run_snippet(snippet, GUIDE, namespace)
    assert isinstance(namespace["learned"], dict)
