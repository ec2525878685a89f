"""A notebook, whose kernel runs an event loop already, as Jupyter executes it."""

import json
from pathlib import Path

import pytest

from tests.conformance.graphs import CASES, make_settings, serve_models

nbclient = pytest.importorskip("nbclient", reason="the extra `test-notebook` is not installed")
pytest.importorskip("ipykernel", reason="the extra `test-notebook` is not installed")
import nbformat  # noqa: E402  # Comes with nbclient.

pytestmark = [
    pytest.mark.slow,
    # Jupyter's own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:zmq"),
]

CELLS = [
    """
import json, sys
from pathlib import Path
from langgraph.checkpoint.memory import InMemorySaver
from drpo_graph import RECURSION_LIMIT, RunOptions, build_graph, build_settings, optimize
from drpo_graph.icl import build_icl_graph
given = json.loads(Path("given.json").read_text())
settings = build_settings(given["settings"])
""",
    """
graph = build_graph(settings, checkpointer=InMemorySaver())
config = {"configurable": {"thread_id": "t"}, "recursion_limit": RECURSION_LIMIT}
output = await graph.ainvoke(given["search"], config)
print(json.dumps(output["result"]["reward"]))
""",
    """
kinds = [told["type"] async for told in graph.astream(given["search"], {"recursion_limit": RECURSION_LIMIT,
    "configurable": {"thread_id": "second"}}, stream_mode="custom", subgraphs=True) for told in told[-1:]]
print(json.dumps(kinds[-1]))
""",
    """
result = await optimize(given["search"]["queries"], settings=settings, thread_id="kept",
                        options=RunOptions(checkpoint=Path("runs.sqlite")))
print(json.dumps(result.reward))
""",
    """
found = await build_icl_graph(settings).ainvoke(given["ICL"], {"recursion_limit": RECURSION_LIMIT})
print(json.dumps("result" in found))
""",
    """
try:
    graph.invoke(given["search"], config)
except Exception as error:
    print(json.dumps("await" in str(error) or "ainvoke" in str(error)))
""",
]


def test_a_notebook_awaits_graphs_and_optimize(tmp_path: Path) -> None:
    with serve_models() as base_url:
        settings = make_settings(base_url).model_dump(mode="json", exclude_unset=True)
        given = {"settings": settings, **{name: dict(CASES[name].given) for name in ("search", "ICL")}}
        (tmp_path / "given.json").write_text(json.dumps(given))
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
        client = nbclient.NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
    told = []
    for cell in notebook.cells:
        assert {output.output_type for output in cell.outputs} <= {"stream"}
        told += [json.loads(one.text) for one in cell.outputs if one.output_type == "stream" and one.name == "stdout"]
    assert told == [told[0], "run_finished", told[0], True, True]
    assert told[0] > 1
