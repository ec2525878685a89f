"""``drpo optimize --ret-icl``: a server of embeddings that is lost, and what the estimate makes of the examples."""

import json
from pathlib import Path

import pytest

from drpo_graph.retrieval import bundled_icl_examples
from tests.support.command import SMALL, Drpo, list_runs, read_result
from tests.support.embeddings import serve_embeddings_beside

RETRIEVAL = ("--ret-icl", "--embeddings", "openai:m")


def test_run_whose_embeddings_are_out_of_reach_says_what_to_do_and_is_resumed(folder: Path, drpo: Drpo) -> None:
    with serve_embeddings_beside() as server:
        gone = server.base_url
    run = ("optimize", *SMALL, *RETRIEVAL, "--thread-id", "t", "--display", "plain")
    stopped = drpo(*run, "--embeddings-base-url", gone)
    assert stopped.code == 1
    assert "Traceback" not in stopped.err
    said = " ".join((stopped.err + stopped.out).split())
    for part in (gone, "embeddings_base_url", "drpo resume t"):
        assert part in said
    assert list_runs(drpo) == {"t": "failed"}
    with serve_embeddings_beside() as other:
        resumed = drpo("resume", "t", "--set", f"embeddings_base_url={other.base_url}", "--display", "plain")
        assert resumed.code == 0, resumed.err
        asked = [text for body in other.bodies for text in body["input"]]  # type: ignore[attr-defined]
    # No text twice: neither an example nor a query.
    assert len(asked) == len(set(asked)) > len(bundled_icl_examples())
    assert read_result(folder / "drpo_runs").status == "done"


def test_estimate_counts_the_examples_without_asking_for_embeddings(drpo: Drpo) -> None:
    def tokens_in(*flags: str) -> dict[str, int]:
        outcome = drpo("optimize", *SMALL, "--dry-run", "--display", "jsonl", *flags)
        assert outcome.code == 0, outcome.err
        by_role = json.loads(outcome.out)["expected"]["by_role"]
        return {role: int(estimate["prompt_tokens"]) for role, estimate in by_role.items()}

    without, two, three = tokens_in(), tokens_in(*RETRIEVAL), tokens_in(*RETRIEVAL, "--k", "3")
    base = [one.pop("base") for one in (without, two, three)]
    assert base[1] - base[0] == pytest.approx(2 * (base[2] - base[1]), rel=0.05)
    assert base[1] - base[0] > 2 * base[0] / 10
    assert without == two == three
