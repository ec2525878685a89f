"""The core needs no numpy: it belongs to Prompt-OIRL."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from drpo_graph.safety.installing import tell_install
from tests.support.command import SMALL, read_result

ROOT = Path(__file__).resolve().parents[2]
RETRIEVE = """
import asyncio
from drpo_graph.retrieval import EmbeddingRetriever, bundled_icl_examples
from tests.support.embeddings import CountingEmbeddings
retriever = EmbeddingRetriever(bundled_icl_examples(), CountingEmbeddings())
example = bundled_icl_examples()[4]
print(asyncio.run(retriever.retrieve(example.query, k=2))[0] == example)
"""


def run_without_numpy(code: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that finds no numpy."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['numpy'] = None\n{code}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def run_drpo(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that finds no numpy."""
    return run_without_numpy(f"from drpo_graph.cli import main; main({list(words)!r})", folder=folder)


def test_core_depends_on_no_numpy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not [one for one in project["dependencies"] if one.startswith("numpy")]
    assert [one for one in project["optional-dependencies"]["oirl"] if one.startswith("numpy")]


@pytest.mark.slow
def test_run_is_started_shown_and_resumed_without_numpy(tmp_path: Path) -> None:
    words = [
        ("optimize", *SMALL, "--thread-id", "t"),
        ("resume", "t"),
        ("show", "t"),
        ("runs",),
        ("export", "t", "--output", "out"),
    ]
    for one in words:
        done = run_drpo(*one, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "drpo_runs").system_prompt


def test_examples_are_found_without_numpy(tmp_path: Path) -> None:
    done = run_without_numpy(RETRIEVE, folder=tmp_path)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("oirl", "inspect", "table.jsonl"),
        ("oirl", "train", "table.jsonl", "--output", "router.npz"),
        ("oirl", "collect", "--model", "openai:world"),
        ("optimize", *SMALL, "--n-proposed", "4", "--embeddings", "openai:world"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_needs_numpy_names_its_extra_in_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "table.jsonl").write_text('{"query": "q", "prompt": "p", "outcome": 1}\n')
    done = run_drpo(*words, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert tell_install("oirl") in done.stderr
    assert "n-proposed" in done.stderr
