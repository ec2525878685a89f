"""What the documents show could be done as it stands: commands parse as a whole, code imports what there is."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from drpo_graph.cli.app import app
from drpo_graph.cli.published_names import translate
from drpo_graph.records import ROLES
from drpo_graph.settings.settings import RoleSettings, Settings
from tests.docs.snippets import ROOT, read_snippets
from tests.docs.test_documents import DOCUMENTS, options_by_command

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELLS = ("", "sh", "bash", "console")
_ENDS = {"&", "|", ">", "&&", ";"}
_PATH = re.compile(r"`((?:docs|drpo_graph|examples|nodes|prompts|scripts|tests)/[\w/.-]+)`")


def whole_commands(document: Path) -> Iterator[list[str]]:
    """Yield the arguments of each command of ``drpo`` in a document's blocks, as a shell would give them."""
    for language, block in _BLOCK.findall(document.read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines() if language in _SHELLS else ():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words[:1] == ["drpo"]:
                end = next((place for place, word in enumerate(words) if word in _ENDS), None)
                yield words[1:end]


def parse(arguments: list[str]) -> None:
    """Parse a command line as ``drpo`` does; nothing is done."""
    command: Any = typer.main.get_command(app)
    words = translate(arguments).arguments
    while hasattr(command, "load"):
        command = command.load(words.pop(0))
    command.make_context(command.name, words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_block_parses_as_a_whole(document: Path) -> None:
    for arguments in whole_commands(document):
        try:
            parse(arguments)
        except Exception as error:
            raise AssertionError(f"drpo {shlex.join(arguments)}: {error!r}") from error


def test_commands_are_found() -> None:
    assert sum(len(list(whole_commands(one))) for one in DOCUMENTS) > 50
    with pytest.raises(Exception, match="output"):
        parse(["oirl", "train", "tries.parquet"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_compiles_and_what_it_imports_is_there(document: Path) -> None:
    for snippet in read_snippets(str(document.relative_to(ROOT))):
        for node in ast.walk(ast.parse(snippet.code)):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in modules:
                if name.startswith("drpo_graph") or find_spec(name.partition(".")[0]) is not None:
                    module = import_module(name)
                    wanted = [one.name for one in node.names] if isinstance(node, ast.ImportFrom) else []
                    missing = [one for one in wanted if not hasattr(module, one) and find_spec(f"{name}.{one}") is None]
                    assert not missing, f"{document.name}:{snippet.line}: {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_that_are_set_exist(document: Path) -> None:
    for name in re.findall(r"--set\s+['\"]?([a-z]\w*(?:\.\w+)?)=", document.read_text(encoding="utf-8")):
        role, dot, field = name.partition(".")
        known = RoleSettings.model_fields if dot else {**Settings.model_fields, **RoleSettings.model_fields}
        assert (field if dot else name) in known, name
        assert not dot or role in ROLES, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_scripts_take_the_flags_that_they_are_given(document: Path) -> None:
    text = " ".join(document.read_text(encoding="utf-8").split())
    for script, rest in re.findall(r"python (scripts/\w+\.py)([^`]*)", text):
        source = (ROOT / script).read_text(encoding="utf-8")
        assert not [one for one in re.findall(r"--[a-z-]+", rest.split(" python ")[0]) if f'"{one}"' not in source]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_the_running_text_exist(document: Path) -> None:
    named = _PATH.findall(document.read_text(encoding="utf-8"))
    assert not [one for one in named if not (ROOT / one).exists()]


def test_page_of_options_names_the_flag_of_every_setting_that_has_one() -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    flags = {
        one for one in options_by_command()["optimize"] if one.strip("-").replace("-", "_") in Settings.model_fields
    }
    assert len(flags) > 25
    assert not [one for one in flags if not re.search(rf"`{one}[`/]", page)]
