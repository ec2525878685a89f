"""Measure wall time over the critical path, and CPU per call, against a fake server in a process of its own.

The critical path is the longest chain of calls that must wait for each other, times the latency: response and critique
at the root, then rewrite, response and critique per level. Metric selection is never on it. Each run begins without
knowing anything of its server. The best of a few runs is reported, because what else a machine does can only slow a run
down.

    python scripts/measure_speed.py
"""

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from drpo_graph.cli.execution import calm_collector
from drpo_graph.events.schema import Event, LevelFinished, RunFinished
from drpo_graph.runs.runner import RunOptions, optimize
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from tests.support.fake_server import Latency, ServerOptions, spawn_fake_server
from tests.support.world import INITIAL_PROMPT, World

CPU_MS_PER_CALL_GOAL = 6.0
MAX_CPU_MS_PER_CALL = 2 * CPU_MS_PER_CALL_GOAL
SLOW_MACHINE = 1.5
"""Our share of a run is work of the CPU, so it grows on a machine that is slower or has other things to do: a
limit that is missed is told, and only an overhead so many times the allowed one, which no noise explains, is a failure.
"""
_PATIENCE = 3
ROOT_CHAIN = 2
LEVEL_CHAIN = 3


@dataclass(frozen=True)
class Case:
    """One measurement and its limit."""

    latency_s: float
    beam_size: int
    n_actions: int
    depth: int
    max_ratio: float


CASES = (
    Case(latency_s=1.0, beam_size=2, n_actions=3, depth=5, max_ratio=1.05),
    Case(latency_s=1.0, beam_size=5, n_actions=4, depth=5, max_ratio=1.12),
    Case(latency_s=0.2, beam_size=2, n_actions=3, depth=8, max_ratio=1.2),
    Case(latency_s=0.2, beam_size=5, n_actions=4, depth=8, max_ratio=1.5),
)


@dataclass(frozen=True)
class Measurement:
    """What one run took."""

    ratio: float
    """Wall time over critical path."""
    cpu_ms: float
    num_calls: int


def make_settings(case: Case, base_url: str) -> Settings:
    """Return the published search of a case, at the fake server."""
    roles = {
        f"{role}_{name}": value
        for role in ("base", "metrics", "critic", "optimizer")
        for name, value in (("model", "openai:fake"), ("base_url", base_url))
    }
    search = {"compat": "drpo", "beam_size": case.beam_size, "n_actions": case.n_actions, "depth": case.depth}
    limits = {"max_depth_increase": 0, "max_concurrency": 128}
    return build_settings({"initial_prompt": INITIAL_PROMPT, **roles, **search, **limits})


def measure(case: Case, base_url: str) -> Measurement:
    """Run a case once."""
    easy_levels: list[int] = []
    num_calls = 0

    def note(event: Event) -> None:
        nonlocal num_calls
        if isinstance(event, LevelFinished) and event.is_easy:
            easy_levels.append(event.level)
        if isinstance(event, RunFinished):
            num_calls = sum(usage.calls for usage in event.result.usage_by_role.values())

    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        options = RunOptions(checkpoint=Path(folder) / "checkpoints.sqlite", sinks=(note,))
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        queries = World(seed=0).train_queries[:40]
        asyncio.run(optimize(queries, settings=make_settings(case, base_url), options=options))
        wall_s, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    if easy_levels:
        raise RuntimeError(f"levels {easy_levels} were easy: the critical path is shorter than assumed")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    chain_s = (ROOT_CHAIN + LEVEL_CHAIN * (case.depth - 1)) * case.latency_s
    return Measurement(wall_s / chain_s, 1000 * cpu_s, num_calls)


def main() -> int:
    """Measure all cases; exit code 1 if one misses its limit by more than a slow machine explains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs per case, the best counts")
    given = parser.parse_args()
    has_failed = False
    print(f"{'latency':>8} {'beam':>5} {'calls':>6} {'wall / critical path':>21} {'limit':>6} {'CPU ms per call':>16}")
    print(f"{'':43} goal: {CPU_MS_PER_CALL_GOAL:g} ms of CPU per call")
    tiny = Case(latency_s=0.01, beam_size=1, n_actions=1, depth=2, max_ratio=0)
    base: Measurement | None = None
    for case in CASES:
        options = ServerOptions(latency=Latency(median_s=case.latency_s))
        with spawn_fake_server("tests.support.oracle:build_responder", config={"seed": 0}, options=options) as server:
            if base is None:
                measure(tiny, server.base_url)  # Imports and first connections are not what is measured.
                calm_collector()  # As `drpo optimize` does.
                base = min((measure(tiny, server.base_url) for _ in range(5)), key=lambda run: run.cpu_ms)
            runs = [measure(case, server.base_url) for _ in range(given.repeats)]
            # A miss may be the machine's: only one that stays is ours.
            while min(run.ratio for run in runs) > case.max_ratio and len(runs) < _PATIENCE * given.repeats:
                runs.append(measure(case, server.base_url))
        ratio = min(run.ratio for run in runs)
        cpu_ms = min((run.cpu_ms - base.cpu_ms) / (run.num_calls - base.num_calls) for run in runs)
        is_ok = ratio <= case.max_ratio and cpu_ms <= MAX_CPU_MS_PER_CALL
        is_explained = ratio - 1 <= SLOW_MACHINE * (case.max_ratio - 1) and cpu_ms <= MAX_CPU_MS_PER_CALL
        has_failed = has_failed or not is_explained
        beam = f"{case.beam_size}x{case.n_actions}"
        print(
            f"{case.latency_s * 1000:6.0f}ms {beam:>5} {runs[0].num_calls:6} {ratio:21.3f} {case.max_ratio:6.2f} "
            f"{cpu_ms:16.2f}{'' if is_ok else '  MISSED'}",
            flush=True,
        )
    assert base is not None
    print(f"start and end of a run ({base.num_calls} calls): {base.cpu_ms:.0f} ms of CPU")
    return 1 if has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
