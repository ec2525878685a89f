"""``drpo optimize --dry-run``: an estimate, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT, SMALL, Drpo, finished_keys
from tests.support.fake_server import FakeServer

DRY = ("optimize", *SMALL, "--dry-run")


def test_nothing_is_called_and_nothing_is_created(drpo: Drpo, folder: Path, world: FakeServer) -> None:
    num_requests, num_probes = len(world.log), len(world.probes)
    outcome = drpo(*DRY)
    assert (outcome.code, outcome.err) == (0, "")
    assert "Nothing was called, and nothing was created." in outcome.out
    assert (len(world.log), len(world.probes)) == (num_requests, num_probes)
    assert list(folder.iterdir()) == []


def test_the_calls_of_the_run_are_those_estimated_or_fewer(drpo: Drpo, world: FakeServer) -> None:
    found = json.loads(drpo(*DRY, "--display", "jsonl").out)
    before = len(finished_keys(world))
    assert drpo("optimize", *SMALL, "--thread-id", "t", "--display", "none").code == 0
    num_called = len(finished_keys(world)) - before
    assert num_called <= found["expected"]["calls"] <= found["at_most"]["calls"]
    assert num_called >= 0.8 * found["expected"]["calls"]
    assert set(found["expected"]["by_role"]) == {"base", "metrics", "critic", "optimizer"}


def test_the_page_has_money_where_there_are_prices_and_warns_of_caps(drpo: Drpo) -> None:
    without = drpo(*DRY).out
    assert "$" not in without
    outcome = drpo(*DRY, "--price", "openai:world=5,10", "--max-cost", "0.01", "--max-calls", "1000")
    assert outcome.code == 0
    (total,) = [line for line in outcome.out.splitlines() if line.startswith("total")]
    assert total.count("$") == 2
    (warning,) = [line for line in outcome.out.splitlines() if line.startswith("warning: ")]
    assert "--max-cost is $0.01" in warning
    assert "max-calls" not in warning


def test_wrong_usage_is_refused_as_without_it(drpo: Drpo) -> None:
    assert drpo(*DRY, "--num-queries", "100000").code == 2
    assert drpo(*DRY, "--max-cost", "1").code == 2


@pytest.mark.parametrize("display", ["rich", "plain", "none"])
def test_the_display_says_how_much_is_printed(display: str, drpo: Drpo) -> None:
    out = drpo(*DRY, "--display", display).out
    assert (out == "") == (display == "none")


def test_it_is_quick_because_langgraph_is_not_loaded() -> None:
    code = (
        "import sys; from drpo_graph.cli.app import _run; "
        "assert _run(['optimize', '--dry-run', '--display', 'none'], is_debug=False) == 0; "
        "sys.exit('langgraph.graph' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0
