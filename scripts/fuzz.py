"""Feed what reads from outside with bytes that nobody meant: it must end with a value or one of our own errors.

``answers`` are whole answers of a server to each kind of request that a run makes, with fields that are odd.

Guided by coverage where atheris is installed (`pip install atheris`), else by hypothesis. Each target runs in a process
of its own, because a crash ends it.

    python scripts/fuzz.py --runs 100000

Sealed records are left out where pycryptodome is not installed.
"""

import argparse
import asyncio
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

TARGETS = ("reply", "dataset", "pickle", "event", "checkpoint", "answers")
MAX_LENGTH = 2048
MAX_SECONDS = 5
"""For one input."""
MAX_MEGABYTES = 1024


def fuzz_with_atheris(target: str, *, runs: int, seed: int) -> None:
    """Run one target; does not return."""
    import atheris

    with atheris.instrument_imports(include=["drpo_graph", "json", "csv", "pickletools"]):
        from tests.support.fuzzing import SEEDS, TARGETS
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    for number, content in enumerate(SEEDS[target]):
        (folder / str(number)).write_bytes(content)
    options = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={MAX_LENGTH}",
        f"-timeout={MAX_SECONDS}",
        f"-rss_limit_mb={MAX_MEGABYTES}",
        f"-artifact_prefix={folder}/",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder)], TARGETS[target])
    atheris.Fuzz()


def fuzz_with_hypothesis(target: str, *, runs: int) -> None:
    """Run one target."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    from tests.support.fuzzing import SEEDS, TARGETS

    parts = st.sampled_from([content[at : at + 8] for content in SEEDS[target] for at in range(0, len(content), 4)])
    inputs = st.binary(max_size=200) | st.lists(parts | st.binary(max_size=4), max_size=40).map(b"".join)
    given(inputs)(
        settings(
            max_examples=runs,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )(TARGETS[target])
    )()


def fuzz_answers(*, runs: int, seed: int) -> None:
    """Ask a server that answers oddly, as a run does: each kind of request gets its share of the answers."""
    from tests.support.answer_fuzz import ASKS, fuzz

    # What the provider's own classes say of fields that they do not know.
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
    for name in ASKS:
        print(f"{name}: {dict(asyncio.run(fuzz(name, runs=-(-runs // len(ASKS)), seed=seed)))}")


def main() -> None:
    """Run the targets and say how they ended."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="inputs per target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="all")
    parser.add_argument("--here", action="store_true", help="in this process")
    given = parser.parse_args()
    has_atheris = find_spec("atheris") is not None
    if given.here:
        # What is told of each input would fill the memory.
        logging.disable()
        if given.target == "answers":
            fuzz_answers(runs=given.runs, seed=given.seed)
        elif has_atheris:
            fuzz_with_atheris(given.target, runs=given.runs, seed=given.seed)
        else:
            fuzz_with_hypothesis(given.target, runs=given.runs)
        return
    has_failed = False
    for target in TARGETS if given.target == "all" else (given.target,):
        began = time.monotonic()
        arguments = ["--here", "--target", target, "--runs", str(given.runs), "--seed", str(given.seed)]
        done = subprocess.run([sys.executable, __file__, *arguments], cwd=ROOT, capture_output=True, text=True)
        how = "no crash" if done.returncode == 0 else f"FAILED ({done.returncode})"
        tool = "field" if target == "answers" else "atheris" if has_atheris else "hypothesis"
        print(f"{target}: {given.runs} inputs by {tool}, {how}, {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode != 0:
            has_failed = True
            print("\n".join((done.stdout + done.stderr).splitlines()[-40:]))
    sys.exit(1 if has_failed else 0)


if __name__ == "__main__":
    main()
