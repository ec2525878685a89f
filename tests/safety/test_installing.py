"""What installs an extra is a command that works where it is told."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tell(package: Path, site: Path, extra: str = "oirl") -> list[str]:
    """Return the words of the command that a copy of the package tells; ``site`` holds an installer's notes."""
    code = f"from drpo_graph.safety.installing import tell_install; print(tell_install({extra!r}))"
    environment = {"PYTHONPATH": f"{package}:{site}"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=package, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    return shlex.split(done.stdout)


def copy_package(folder: Path) -> Path:
    """Put what the hint needs of the package into a folder, and return that."""
    for name in ("drpo_graph", "drpo_graph/safety"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    (folder / "drpo_graph/safety/installing.py").write_bytes((ROOT / "drpo_graph/safety/installing.py").read_bytes())
    return folder


def make_clone(folder: Path) -> Path:
    """Make a folder that looks like a clone of ours."""
    (folder / "nodes").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    return folder


def note_origin(site: Path, url: str | None) -> Path:
    """Note that the package was installed, and from where, unless it came from an index."""
    notes = site / "drpo_graph-0.1.0.dist-info"
    notes.mkdir(parents=True)
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: drpo-graph\nVersion: 0.1.0\n")
    if url is not None:
        (notes / "direct_url.json").write_text(json.dumps({"url": url, "dir_info": {}}))
    return site


def test_from_a_clone_the_command_names_the_clone(tmp_path: Path) -> None:
    clone = make_clone(copy_package(tmp_path / "my clone"))
    assert tell(clone, tmp_path / "nothing") == ["pip", "install", "-e", f"{clone}[oirl]"]


def test_installed_from_a_clone_it_names_the_clone(tmp_path: Path) -> None:
    clone, package = make_clone(tmp_path / "my clone"), copy_package(tmp_path / "site")
    site = note_origin(tmp_path / "notes", clone.as_uri())
    assert tell(package, site) == ["pip", "install", "-e", f"{clone}[oirl]"]


@pytest.mark.parametrize("url", [None, "https://example.org/drpo_graph-0.1.0.whl", "file:///gone"])
def test_installed_from_elsewhere_it_names_the_package(tmp_path: Path, url: str | None) -> None:
    package, site = copy_package(tmp_path / "site"), note_origin(tmp_path / "notes", url)
    assert tell(package, site) == ["pip", "install", "drpo-graph[oirl]"]
