"""A run that a former version stored goes on as if nothing had been moved: names that are stored are for ever."""

import lzma
from collections import Counter
from pathlib import Path

import pytest

from drpo_graph.errors import FingerprintMismatchError
from drpo_graph.parts.defaults import (
    CachedMetrics,
    FixedMetrics,
    LLMCritic,
    LLMMetricSelector,
    LLMRewriter,
    RewardCritic,
)
from drpo_graph.parts.identity import stored_name
from drpo_graph.parts.responders import OnePromptOfApp
from drpo_graph.parts.rewards import MixedCritic
from drpo_graph.retrieval.retriever import EmbeddingRetriever
from tests.support.command import finished_keys, serve
from tests.support.fake_server import ServerOptions
from tests.support.stored_runs import NUM_CALLS, PARTS, STORED, begin, go_on, make_models

KINDS = list(NUM_CALLS)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    (tmp_path / "runs.sqlite").write_bytes(lzma.decompress(STORED.read_bytes()))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
async def test_run_of_the_former_version_resumes_without_paying_again(kind: str, stored: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    with serve(make_models(), ServerOptions()) as server:
        unbroken = await begin(kind, whole, server.base_url, max_calls=None)
        keys = Counter(finished_keys(server))
    with serve(make_models(), ServerOptions()) as server:
        resumed = await go_on(kind, stored, server.base_url)
        asked = Counter(finished_keys(server))
    assert asked.total() == keys.total() - NUM_CALLS[kind] > 0
    assert asked <= keys
    assert resumed.fingerprints == unbroken.fingerprints
    assert resumed.model_dump(exclude={"usage", "duration_s"}) == unbroken.model_dump(exclude={"usage", "duration_s"})


async def test_run_of_the_former_version_is_still_told_from_one_with_other_parts(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARTS, "search", PARTS["reward"])
    with serve(make_models(), ServerOptions()) as server, pytest.raises(FingerprintMismatchError, match="components"):
        await go_on("search", stored, server.base_url)
    assert not finished_keys(server)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (LLMMetricSelector, "drpo_graph.components.LLMMetricSelector"),
        (CachedMetrics, "drpo_graph.components.CachedMetrics"),
        (FixedMetrics, "drpo_graph.components.FixedMetrics"),
        (LLMCritic, "drpo_graph.components.LLMCritic"),
        (RewardCritic, "drpo_graph.components.RewardCritic"),
        (LLMRewriter, "drpo_graph.components.LLMRewriter"),
        (MixedCritic, "drpo_graph.rewards.MixedCritic"),
        (OnePromptOfApp, "drpo_graph.responders.OnePromptOfApp"),
        (EmbeddingRetriever, "drpo_graph.retrieval.retriever.EmbeddingRetriever"),
    ],
)
def test_part_is_called_in_a_fingerprint_what_it_always_was(kind: type[object], name: str) -> None:
    assert stored_name(kind) == name
    subclass = type("Own", (kind,), {})
    assert stored_name(subclass) == f"{subclass.__module__}.Own"
