"""What importing the package costs, and what it offers."""

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

import drpo_graph
from drpo_graph.search.assembly import GivenParts

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "langgraph", "langchain_core", "langchain_openai", "openai", "pydantic")
PROBE = """
import json, sys, time
started = time.process_time()
{statement}
print(json.dumps([time.process_time() - started, sorted(sys.modules)]))
"""


def probe(statement: str) -> tuple[float, set[str]]:
    """Return the CPU seconds that a statement takes in a fresh process, and the modules loaded then."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), set(modules)


def test_importing_the_package_is_quick_and_loads_no_client() -> None:
    seconds, modules = probe("import drpo_graph")
    assert seconds < 0.3
    assert modules.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "statement",
    [
        "from drpo_graph.cli.app import app",
        "from drpo_graph.cli.app import _run; _run(['--help'], is_debug=False)",
        "from drpo_graph.cli.app import _run; _run(['optimize', '--depth', '0'], is_debug=False)",
        "from drpo_graph import Settings, load_bundled_queries, parse_event",
    ],
)
def test_what_calls_no_model_loads_neither_langgraph_nor_a_client(statement: str) -> None:
    seconds, modules = probe(statement)
    assert seconds < 3
    assert modules.isdisjoint({"torch", "langgraph", "langchain_core", "langchain_openai", "openai", "genai_prices"})


def test_help_costs_what_a_bare_command_line_s_does() -> None:
    bare = "import typer; app = typer.Typer(); app.command()(lambda x=1: 0); app(['--help'], standalone_mode=False)"
    help_of_ours = "from drpo_graph.cli.app import _run; _run(['--help'], is_debug=False)"
    usual_s = min(probe(bare)[0] for _ in range(3))
    ours = [probe(help_of_ours) for _ in range(3)]
    assert min(seconds for seconds, _ in ours) < 2 * usual_s
    assert ours[0][1].isdisjoint(
        {"asyncio", "pydantic", "genai_prices", "drpo_graph.cli.options", "drpo_graph.settings.settings"}
    )


def test_building_a_graph_loads_no_client() -> None:
    _, modules = probe("import drpo_graph; drpo_graph.build_graph()")
    assert modules.isdisjoint({"torch", "langchain_openai", "openai"})


def test_every_offered_name_resolves_and_stands_where_the_stub_says() -> None:
    stub = ast.parse((ROOT / "drpo_graph" / "__init__.pyi").read_text(encoding="utf-8"))
    offered = [(node.module, one.name) for node in stub.body if isinstance(node, ast.ImportFrom) for one in node.names]
    assert sorted(drpo_graph.__all__) == sorted(name for _, name in offered)
    for module, name in offered:
        assert getattr(drpo_graph, name) is getattr(import_module(f"drpo_graph.{module}"), name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = drpo_graph.nothing  # type: ignore[attr-defined]


def test_the_command_and_the_module_are_the_same() -> None:
    said = [
        subprocess.run([sys.executable, *how, "--version"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for how in (["-m", "drpo_graph"], ["-c", "from drpo_graph.cli import main; main()"])
    ]
    assert said == [f"drpo_graph {drpo_graph.__version__}\n"] * 2


def test_package_is_imported_from_a_zip_file_too(tmp_path: Path) -> None:
    wheel = tmp_path / "drpo_graph.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in (ROOT / "drpo_graph").glob("**/*"):
            if path.suffix in (".py", ".pyi", ".toml"):
                archive.write(path, path.relative_to(ROOT))
    code = "import drpo_graph; print(drpo_graph.__file__, len(drpo_graph.__all__), drpo_graph.Query.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(wheel)}, capture_output=True, text=True
    )
    assert done.stderr == ""
    num_names = str(len(drpo_graph.__all__))
    assert done.stdout.split() == [str(wheel / "drpo_graph" / "__init__.py"), num_names, "Query"]


@pytest.mark.parametrize("function", [drpo_graph.build_graph, drpo_graph.build_context], ids=lambda one: one.__name__)
def test_wrong_keyword_is_told_of_the_function_that_was_called(function: Callable[..., object]) -> None:
    told = (
        rf"{function.__name__}\(\) got an unexpected keyword argument 'critik'; the parts are models, selector, critic"
    )
    with pytest.raises(TypeError, match=told):
        function(drpo_graph.Settings(), critik=1)


def test_parts_have_the_same_names_and_types_as_a_record_and_as_keywords() -> None:
    hints = get_type_hints(drpo_graph.Parts)
    assert get_type_hints(GivenParts) == {one.name: hints[one.name] for one in fields(drpo_graph.Parts) if one.init}
