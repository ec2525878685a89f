"""Check a built wheel: one top-level name, every template, metric, query and ICL example inside, working installed."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def find_problems(wheel: Path) -> list[str]:
    """Return what is wrong with a wheel's content."""
    names = set(zipfile.ZipFile(wheel).namelist())
    problems = []
    top_level = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if top_level != {"drpo_graph"}:
        problems.append(f"expected one top-level name, drpo_graph, got {sorted(top_level)}")
    expected = {f"drpo_graph/prompts/{path.name}" for path in (ROOT / "prompts").iterdir() if path.is_file()}
    expected |= {f"drpo_graph/nodes/{path.name}" for path in (ROOT / "nodes").glob("*.py")}
    expected |= {
        str(path.relative_to(ROOT))
        for path in (ROOT / "drpo_graph").rglob("*")
        if path.is_file() and path.suffix in (".py", ".pyi", ".json", ".jsonl", ".toml", ".typed")
    }
    problems += [f"missing: {name}" for name in sorted(expected - names)]
    return problems


def try_installed(wheel: Path) -> None:
    """Load templates, metrics and queries from the installed wheel, without the repository on the path.

    Raises:
        subprocess.CalledProcessError: they cannot be loaded.
    """
    code = (
        "from drpo_graph.data.datasets import load_bundled_queries; from drpo_graph.prompts import load_prompts; "
        "from drpo_graph.retrieval import bundled_icl_examples; print(len(load_bundled_queries()), 'queries,', "
        "len(load_prompts().metrics), 'metrics,', len(bundled_icl_examples()), 'ICL examples from the wheel')"
    )
    with tempfile.TemporaryDirectory() as folder:
        # The dependencies are this environment's; the package itself is the wheel's.
        target = Path(folder) / "site"
        zipfile.ZipFile(wheel).extractall(target)
        subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env={"PYTHONPATH": str(target)})


def main() -> int:
    """Check the wheel named on the command line."""
    wheel = Path(sys.argv[1])
    problems = find_problems(wheel)
    for problem in problems:
        print(f"{wheel.name}: {problem}")
    if not problems:
        try_installed(wheel)
        print(f"{wheel.name}: one top-level name, all templates inside")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
