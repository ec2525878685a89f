"""The environment of the Makefile's targets is made with a Python that will do, and a wrong one is made anew."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "ensure_venv.sh"


PYTHONS = ("python3", "python3.14", "python3.13", "python3.12", "python3.11")
"""What is looked for, in this order."""
OLD = 'test "$1" != --version || echo Python 3.9.1; exit 1'


def run(*words: str | Path, path: str | Path = "") -> subprocess.CompletedProcess[str]:
    """Run the script, with more programs in front of the usual ones."""
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True)


def write_program(file: Path, text: str) -> Path:
    """Write a shell script that can be run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def write_tools(folder: Path, **text_by_name: str) -> Path:
    """Write programs to a folder, and under the names of Pythons that are not among them, one that is too old."""
    for name, text in {**dict.fromkeys(PYTHONS, OLD), **text_by_name}.items():
        write_program(folder / name, text)
    return folder


def making(*, has_pip: bool = True) -> str:
    """Return a program that makes an environment with this Python where its last argument says, in no time."""
    python = f'test "$2" != pip || exit {int(not has_pip)}; exec {shlex.quote(sys.executable)} "$@"'
    return (
        'for last; do :; done; mkdir -p "$last/bin"; touch "$last/pyvenv.cfg"; '
        f'printf \'#!/bin/sh\\n%s\\n\' {shlex.quote(python)} > "$last/bin/python"; chmod +x "$last/bin/python"'
    )


def python_that(makes: str) -> str:
    """Return a program that is this Python, but for how it makes environments."""
    return f'if [ "$2" = venv ]; then {makes}; else exec {shlex.quote(sys.executable)} "$@"; fi'


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Where an environment is to be."""
    return tmp_path / "my work" / ".venv"


def break_by_exit(venv: Path) -> None:
    write_program(venv / "bin" / "python", "exit 1")


def break_by_lost_python(venv: Path) -> None:
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to("/nowhere/python3.11")


def break_by_lost_folder(venv: Path) -> None:
    venv.mkdir(parents=True)


def break_by_lost_pip(venv: Path) -> None:
    subprocess.run(["sh", "-c", making(has_pip=False), "sh", venv], check=True)


@pytest.mark.parametrize("damage", [break_by_exit, break_by_lost_python, break_by_lost_folder, break_by_lost_pip])
def test_wrong_or_broken_environment_is_made_anew_and_a_right_one_left(
    damage: Callable[[Path], None], venv: Path, tmp_path: Path
) -> None:
    damage(venv)
    (venv / "pyvenv.cfg").touch()
    (venv / ".stamps").mkdir()
    python = write_program(tmp_path / "my tools" / "python3", python_that(making()))
    made = run(venv, python)
    assert (made.returncode, made.stderr) == (0, "")
    assert "making it anew" in made.stdout
    assert not (venv / ".stamps").exists()
    (venv / "mark").touch()
    # Whichever Python it was made by: what is right stays.
    again = run(venv, path=write_tools(tmp_path / "others"))
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (venv / "mark").exists()


@pytest.mark.slow
def test_real_environment_is_whole(venv: Path) -> None:
    assert run(venv, sys.executable).returncode == 0
    assert subprocess.run([venv / "bin" / "python", "-m", "pip", "--version"], capture_output=True).returncode == 0


def test_first_python_that_can_make_a_whole_one_is_taken(venv: Path, tmp_path: Path) -> None:
    # As Debian ships it without python3-venv: it leaves half of one.
    half = python_that('mkdir -p "$3/bin"; exit 1')
    path = write_tools(tmp_path / "my tools", **{"python3.13": half, "python3.12": python_that(making())})
    done = run(venv, path=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"created {venv} with Python 3.")
    assert (venv / "pyvenv.cfg").exists()


@pytest.mark.parametrize("is_given", [False, True])
def test_python_that_is_too_old_is_told_before_anything_is_made(is_given: bool, venv: Path, tmp_path: Path) -> None:
    tools = write_tools(tmp_path / "my tools", uv="exit 1")
    done = run(venv, *([tools / "python3"] if is_given else []), path=tools)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert f"{tools / 'python3' if is_given else 'python3'} is: Python 3.9.1." in done.stderr
    assert not venv.exists()


def test_uv_makes_it_where_no_python_will_do(venv: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    tools = write_tools(tmp_path / "my tools", uv=f'printf "%s|" "$@" > {shlex.quote(str(asked))}; {making()}')
    done = run(venv, path=tools)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"created {venv} with uv and Python 3.")
    assert asked.read_text() == f"venv|-q|--seed|--python|>=3.11|{venv}|"


@pytest.mark.parametrize("makes", [f"{making()}; exit 1", making(has_pip=False)], ids=["it fails", "it makes half"])
def test_what_uv_leaves_in_halves_is_taken_away(makes: str, venv: Path, tmp_path: Path) -> None:
    done = run(venv, path=write_tools(tmp_path / "my tools", uv=makes))
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert not venv.exists()


def test_uv_is_not_asked_in_place_of_a_python_that_is_named(venv: Path, tmp_path: Path) -> None:
    tools = write_tools(tmp_path / "my tools", uv=making())
    assert run(venv, "python3", path=tools).returncode == 1
    assert not venv.exists()


@pytest.mark.slow
def test_real_uv_makes_a_whole_one(venv: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "uv"], check=True)
    if subprocess.run([tmp_path / "uv" / "bin" / "pip", "install", "-q", "uv"], capture_output=True).returncode:
        pytest.skip("no index has uv")
    tools = write_tools(tmp_path / "my tools")
    (tools / "uv").symlink_to(tmp_path / "uv" / "bin" / "uv")
    done = run(venv, path=tools)
    assert done.returncode == 0, done.stderr
    assert "with uv and Python 3." in done.stdout
    assert subprocess.run([venv / "bin" / "python", "-m", "pip", "--version"], capture_output=True).returncode == 0


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
