"""The text of ``--checkpoint`` chooses the place of runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from drpo_graph.errors import UsageError
from drpo_graph.safety.installing import tell_install
from drpo_graph.stop import StopSignal
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.sqlite_file import SqliteStorage

HIDDEN = """
import sys
sys.modules["psycopg"] = None
from drpo_graph.cli import main
main(["runs", "--checkpoint", "postgresql://u:canary@h/d"])
"""


@pytest.mark.parametrize("place", ["runs.sqlite", "postgres", "folder/postgresql", Path("postgresql:x")])
def test_a_path_is_a_file(place: str | Path) -> None:
    storage = find_storage(place)
    assert storage == SqliteStorage(Path(place))
    assert (storage.name, storage.folder) == (str(place), Path(place).parent)
    assert find_storage(storage) is storage


def test_other_uris_are_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="begins with postgresql://") as caught:
        find_storage("mysql://u:canary@h/d")
    assert "canary" not in str(caught.value)


def test_a_missing_extra_is_told_in_one_line_without_the_uri() -> None:
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert tell_install("postgres") in done.stderr
    assert "canary" not in done.stderr


def test_a_guard_of_a_stop_is_looked_at_before_each_call_of_its_children_too() -> None:
    stop, looks = StopSignal(), []
    child = stop.child()
    stop.add_guard(lambda: looks.append(1))
    child.check()
    stop.check()
    assert len(looks) == 2
