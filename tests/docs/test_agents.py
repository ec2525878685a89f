"""The Python blocks of docs/agents.md run, one after the other."""

from drpo_graph.agents import SlotVersion
from tests.docs.snippets import read_snippets, run_snippet
from tests.support.command import finished_keys
from tests.support.fake_server import FakeServer

GUIDE = "docs/agents.md"


def test_snippets_ask_swap_and_optimise(world: FakeServer) -> None:
    namespace: dict[str, object] = {"__name__": "snippet"}
    for snippet in read_snippets(GUIDE):
        num_calls = len(finished_keys(world))
        run_snippet(snippet, GUIDE, namespace)
        assert len(finished_keys(world)) > num_calls
    in_use, told = namespace["in_use"], namespace["told"]
    assert isinstance(in_use, SlotVersion)
    assert (in_use.version, in_use.replaced) == (2, 1)
    assert namespace["answer"]
    assert str(told).startswith("The optimisation is finished.")
