"""README and docs say what the code does: options, flags, files, links, the graph."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from drpo_graph.cli.app import app
from drpo_graph.cli.published_names import FLAG_BY_PUBLISHED_NAME
from drpo_graph.records import ROLES
from drpo_graph.settings.settings import RoleSettings, Settings
from tests.docs.snippets import ROOT, read_snippets, run_snippet
from tests.support.command import finished_keys
from tests.support.fake_server import FakeServer
from tests.support.scripts import load_module

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def options_by_command() -> dict[str, set[str]]:
    """Return every flag that each command of ``drpo`` takes."""
    root: Any = typer.main.get_command(app)
    return {
        name: {
            flag
            # A command of commands has the flags of them all.
            for own in (sub, *(sub.load(one) for one in getattr(sub, "commands", ())))
            for one in own.params
            for flag in [*one.opts, *one.secondary_opts]
        }
        for name, sub in ((name, root.load(name)) for name in root.commands)
    }


def load_script(name: str) -> ModuleType:
    """Return a script of the repository as a module."""
    return load_module(ROOT / "scripts" / f"{name}.py")


def test_page_of_options_is_what_the_settings_say() -> None:
    """Otherwise run ``python scripts/render_options.py``."""
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == load_script("render_options").render_page()
    named = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert set(named) | set(ROLES) >= set(Settings.model_fields) | set(RoleSettings.model_fields)


def commands(document: Path, program: str) -> Iterator[tuple[str, str]]:
    """Yield a program's commands in blocks and in the running text of a document: name, and what follows."""
    text = re.sub(r"\\\n\s*", "", document.read_text(encoding="utf-8"))
    blocks = _BLOCK.findall(text)
    inline = [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", _BLOCK.sub("", text))]
    for line in [*"\n".join(blocks).splitlines(), *inline]:
        if found := re.match(rf"{program} ([a-z-]+)(.*)", line):
            # What stands in quotes or after a lone -- is for another program.
            yield found[1], re.sub(r'"[^"]*"', "", found[2].split("  #")[0]).split(" -- ")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_the_documents_exists_with_its_flags(document: Path) -> None:
    known = options_by_command()
    for name, rest in commands(document, "drpo"):
        assert name in known, f"drpo {name}"
        assert set(_FLAG.findall(rest)) <= known[name] | {"--help"}, f"drpo {name}{rest}"


def test_flags_named_in_the_running_text_exist() -> None:
    known = set().union(*options_by_command().values(), FLAG_BY_PUBLISHED_NAME, {"--help", "--no-deps"})
    assert set(_FLAG.findall(README)) <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    missing = [one for one in targets if not one.startswith("http") and not (document.parent / one).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {name for name, _ in commands(document, "make")} <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_picture_of_the_rooms_is_the_contract_and_each_room_has_its_words() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = text.split("```")[1].strip().splitlines()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    assert picture == next(one["layers"] for one in contracts if one["name"] == "layers")
    rooms = {name for layer in picture for name in re.split(r" [|:] ", layer)}
    package = ROOT / "drpo_graph"
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    assert rooms == modules | {path.parent.name for path in package.glob("*/__init__.py")}
    described = re.findall(r"\*\*`(.+?)`\*\*", text)
    named = {name.strip("`").removesuffix("/").removesuffix(".py") for one in described for name in one.split(", ")}
    assert named == rooms


def test_files_named_in_the_architecture_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "drpo_graph"
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", text))
    assert len(named) > 20
    assert not [one for one in named if not (package / one).is_file()]


def test_python_blocks_of_the_readme_run(world: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = read_snippets("README.md")
    assert len(snippet.code.strip().splitlines()) <= 10
    run_snippet(snippet, "README.md", {"__name__": "snippet"})
    assert finished_keys(world)
    assert re.match(r"\d\.\d+ ", capsys.readouterr().out)


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    return load_script("draw_graph")


def test_drawn_graph_is_the_graph(drawing: ModuleType) -> None:
    text = drawing.DOCUMENT.read_text(encoding="utf-8")
    drawn = drawing.edges_of(drawing.draw())
    assert len(drawn) > 10
    assert drawing.edges_of(text) == drawn, "run scripts/draw_graph.py"


def test_picture_of_a_run_loads_nothing_from_elsewhere() -> None:
    svg = (ROOT / "docs" / "run.svg").read_text(encoding="utf-8")
    assert "url(http" not in svg
    assert "@font-face" not in svg
    assert "best prompt" in svg.replace("&#160;", " ")
