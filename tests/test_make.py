"""The environment of the Makefile's targets is made with a Python that will do, and a wrong one is made anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "ensure_venv.sh"


def run(*words: str | Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script, with more programs in front of the usual ones."""
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True)


def write_program(file: Path, text: str) -> Path:
    """Write a shell script that can be run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def test_wrong_or_broken_environment_is_made_anew_and_a_right_one_left(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    write_program(venv / "bin" / "python", "exit 1")
    (venv / "pyvenv.cfg").touch()
    (venv / ".stamps").mkdir()
    made = run(venv, sys.executable)
    assert (made.returncode, made.stderr) == (0, "")
    assert "making it anew" in made.stdout
    assert not (venv / ".stamps").exists()
    (venv / "mark").touch()
    again = run(venv, sys.executable)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (venv / "mark").exists()


def test_python_that_is_too_old_is_told_before_anything_is_made(tmp_path: Path) -> None:
    old = write_program(tmp_path / "old" / "python3", 'test "$1" != --version || echo Python 3.9.1; exit 1')
    done = run(tmp_path / "venv", old)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "3.9.1" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_folder_that_is_no_environment_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "thesis.txt").touch()
    done = run(tmp_path / "venv", sys.executable)
    assert done.returncode == 1
    assert (tmp_path / "venv" / "thesis.txt").exists()


@pytest.mark.parametrize("is_found", [True, False])
def test_printed_command_has_the_path_that_it_needs(tmp_path: Path, is_found: bool) -> None:
    program = write_program(tmp_path / "my bin" / "drpo", "")
    code = "import sys; from drpo_graph.safety.installing import tell_command; print(tell_command('drpo show t'))"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    if is_found:
        environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    start = f"import sys; sys.argv = [{str(program)!r}]; {code}"
    done = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True)
    assert done.stdout == ("drpo show t\n" if is_found else f"'{program}' show t\n"), done.stderr
