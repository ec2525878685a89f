"""Every fault at a fifth of all calls: the run ends, finds what it finds without faults, and counts each by kind."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from drpo_graph.records import Candidate, RunResult
from drpo_graph.runs.runner import RunOptions, optimize
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from tests.support.fake_replies import FAULT_KINDS, FaultKind, FaultPlan, asks_for_json
from tests.support.fake_server import FakeServer, LogEntry, ServerOptions
from tests.support.oracle import build_responder, role_of
from tests.support.world import INITIAL_PROMPT, World

RATE = 0.2
QUERIES = World(seed=3).train_queries[:12]
TRANSPORT_KINDS: dict[FaultKind, str] = {
    "429": "http_429",
    "429_retry_after": "http_429",
    "500": "http_500",
    "503": "http_503",
    "reset": "connection",
    "hang": "timeout",
}
REPLY_KINDS: dict[FaultKind, str] = {
    "empty": "empty",
    "truncated": "truncated",
    "refusal": "refused",
    "wrong_names": "unparsable",
    "out_of_range": "unparsable",
    "words": "unparsable",
}
HARMLESS: tuple[FaultKind, ...] = ("prose", "fenced")
LASTING: tuple[FaultKind, ...] = ("repeated",)
"""No retry mends it, for the reply is a good one: the search has fewer prompts to choose from."""


@dataclass(frozen=True)
class Ended:
    """A finished run, and what its server saw."""

    result: RunResult
    tree: list[Candidate]
    log: list[LogEntry]

    @property
    def found(self) -> dict[str, object]:
        """What the search came to, without what it cost or may cost."""
        costs = {"usage_by_role", "failures_by_kind", "unusable_by_kind"}
        return self.result.model_dump(exclude={*costs, "fingerprints"})

    @property
    def faults(self) -> Counter[FaultKind]:
        return Counter(entry["fault"] for entry in self.log if entry["event"] == "start" and entry["fault"])


def make_settings(base_url: str, **more: object) -> Settings:
    values = {"initial_prompt": INITIAL_PROMPT, "model": "openai:world", "base_url": base_url, "probe": False}
    search = {"depth": 4, "beam_size": 2, "n_actions": 2, "queries_per_level": 2}
    # What times out has hung: a slow machine answers within this.
    return build_settings({**values, **search, "retry_wait_s": 0.01, "timeout_s": 1.5, **more})


def run(folder: Path, faults: FaultPlan | None, **more: object) -> Ended:
    options = RunOptions(checkpoint=folder / "runs.sqlite", log_dir=folder / "run")

    async def go() -> tuple[RunResult, list[LogEntry]]:
        async with FakeServer(build_responder(seed=3), ServerOptions(faults=faults, log_bodies=True)) as server:
            settings = make_settings(server.base_url, **more)
            result = await optimize(QUERIES, settings=settings, thread_id="t", options=options)
            return result, server.log

    result, log = asyncio.run(go())
    tree = json.loads((folder / "run" / "algo_output" / "tree.json").read_text())
    return Ended(result, [Candidate.model_validate(one) for one in tree], log)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The run without faults."""
    return run(tmp_path_factory.mktemp("unbroken"), None)


def plan(*kinds: FaultKind, rate: float = RATE, max_per_request: int = 1, seed: int = 2) -> FaultPlan:
    """Return faults by each request's bytes: under some seeds a question's repeats meet one as well, and are repaired.

    What is asked then is another request, whose reply may be another one. Under this seed none is.
    """
    return FaultPlan(
        rate, kinds=kinds, seed=seed, max_per_request=max_per_request, retry_after_s=0.02, spares_text=True
    )


def expected_failures(ended: Ended) -> Counter[str]:
    """Return what the server did to the tries, in the result's words."""
    counts: Counter[str] = Counter()
    for fault, count in ended.faults.items():
        if fault in TRANSPORT_KINDS:
            counts[TRANSPORT_KINDS[fault]] += count
    return counts


def expected_unusable(ended: Ended) -> Counter[str]:
    """Return what the server did to single replies, in the result's words."""
    counts: Counter[str] = Counter()
    for entry in ended.log:
        fault = entry["fault"]
        if entry["event"] != "start" or fault not in REPLY_KINDS:
            continue
        messages, number = entry["body"]["messages"], entry["body"].get("n") or 1
        assert isinstance(messages, list)
        assert isinstance(number, int)
        if fault in ("out_of_range", "words") and role_of(messages) != "critic":
            continue  # There is no score in it.
        assert fault == "empty" or asks_for_json(entry["body"])
        counts[REPLY_KINDS[fault]] += number
    return counts


def assert_same_and_counted(ended: Ended, unbroken: Ended) -> None:
    assert ended.found == unbroken.found
    assert ended.tree == unbroken.tree
    assert Counter(ended.result.failures_by_kind) == expected_failures(ended)
    assert Counter(ended.result.unusable_by_kind) == expected_unusable(ended)


def test_run_without_faults_counts_none(unbroken: Ended) -> None:
    assert unbroken.result.failures_by_kind == {}
    assert unbroken.result.unusable_by_kind == {}
    assert len({candidate.prompt for candidate in unbroken.tree}) > 5


@pytest.mark.parametrize(
    "kind",
    [
        # A call that hangs is given up after seconds.
        pytest.param(kind, marks=[pytest.mark.slow] if kind == "hang" else [])
        for kind in FAULT_KINDS
        if kind not in LASTING
    ],
)
def test_fault_changes_nothing_that_was_found_and_is_counted(kind: FaultKind, tmp_path: Path, unbroken: Ended) -> None:
    ended = run(tmp_path, plan(kind))
    assert ended.faults[kind] >= 5
    assert_same_and_counted(ended, unbroken)
    assert (kind in HARMLESS) == (not ended.result.failures_by_kind and not ended.result.unusable_by_kind)


@pytest.mark.parametrize("seed", range(3))
def test_all_faults_together_change_nothing_that_was_found(seed: int, tmp_path: Path, unbroken: Ended) -> None:
    kinds = [kind for kind in FAULT_KINDS if kind not in LASTING]
    ended = run(tmp_path, plan(*kinds, seed=seed))
    assert sum(ended.faults.values()) > 5
    assert len(ended.faults) > 4
    assert_same_and_counted(ended, unbroken)


def most_in_a_row(ended: Ended) -> int:
    """Return how often at most one request went wrong before it was answered."""
    most, in_a_row = 0, Counter[str]()
    for entry in ended.log:
        if entry["event"] == "start":
            in_a_row[entry["key"]] = in_a_row[entry["key"]] + 1 if entry["fault"] else 0
            most = max(most, in_a_row[entry["key"]])
    return most


@pytest.mark.parametrize("seed", range(2))
def test_tries_that_fail_again_and_again_change_nothing_while_some_are_left(
    seed: int, tmp_path: Path, unbroken: Ended
) -> None:
    kinds: list[FaultKind] = [kind for kind in TRANSPORT_KINDS if kind != "hang"]
    ended = run(tmp_path, plan(*kinds, rate=0.5, max_per_request=4, seed=seed))
    assert most_in_a_row(ended) >= 3
    assert_same_and_counted(ended, unbroken)


@pytest.mark.parametrize("seed", range(2))
def test_replies_that_are_unusable_again_and_again_change_nothing_while_others_may_be_asked_for(
    seed: int, tmp_path: Path, unbroken: Ended
) -> None:
    ended = run(tmp_path, plan(*REPLY_KINDS, rate=0.4, max_per_request=2, seed=seed), max_reply_attempts=8)
    assert most_in_a_row(ended) == 2
    assert_same_and_counted(ended, unbroken)


def expected_lost(ended: Ended, *, num_tries: int) -> int:
    """Return how many samples of the base model and the critic the server let no try succeed for."""
    lost, in_a_row = 0, Counter[str]()
    for entry in ended.log:
        if entry["event"] == "start":
            key, body = entry["key"], entry["body"]
            in_a_row[key] = in_a_row[key] + 1 if entry["fault"] else 0
            lost += in_a_row[key] == num_tries and role_of(body["messages"]) in ("base", "critic")
    return lost


def test_samples_that_no_try_succeeds_for_are_counted_beside_their_tries(tmp_path: Path, unbroken: Ended) -> None:
    ended = run(tmp_path, plan("500", max_per_request=100), max_retries=1, max_outage_s=0)
    num_lost = expected_lost(ended, num_tries=2)
    assert num_lost >= 2
    assert Counter(ended.result.failures_by_kind) == {**expected_failures(ended), "unavailable": num_lost}
    assert not ended.result.unusable_by_kind
    assert ended.tree != unbroken.tree


def test_repeated_samples_take_one_place_and_one_call_each(tmp_path: Path) -> None:
    ended = run(tmp_path, plan("repeated"))
    prompts = {one.id: one.prompt for one in ended.tree}
    beam = [prompts[one] for one in ended.result.beam]
    assert len(beam) == len(set(beam))
    assert len(set(prompts.values())) < len(prompts)
    asked = Counter(entry["key"] for entry in ended.log if entry["event"] == "end")
    assert set(asked.values()) == {1}
    assert not ended.result.unusable_by_kind
