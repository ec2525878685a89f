"""``drpo oirl collect`` from the outside: usage, displays, budget, signals, kills, and commands that look at runs."""

import json
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.events.schema import CollectionFinished, TrialFinished
from drpo_graph.oirl.tables import load_demonstrations
from tests.oirl.collection.script import PROMPTS, answer, write_prompts, write_sums
from tests.support.command import (
    KEY,
    Drpo,
    assert_one_line,
    finish,
    finished_keys,
    list_runs,
    serve,
    spawn_drpo,
    wait_for,
)
from tests.support.fake_server import FakeServer, Latency, ServerOptions

MODEL = ("--model", "openai:scripted")
START = ("oirl", "collect", "sums.jsonl", "--prompts", "prompts.jsonl", *MODEL, "--thread-id", "t")
ROWS = Path("drpo_runs/t/demonstrations.jsonl")


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that adds up, with eight sums and three prompts in the working folder."""
    write_sums(folder / "sums.jsonl", 8)
    write_prompts(folder / "prompts.jsonl")
    with serve(answer, ServerOptions(api_key=KEY)) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


def test_plain_tells_how_far_it_is_and_ends_with_each_prompt_and_the_next_command(
    server: FakeServer, drpo: Drpo
) -> None:
    outcome = drpo(*START, "--display", "plain")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("started  t  queries 8  prompts 3  trials 24  checker numeric")
    assert any(line.startswith("trials 24/24  mean outcome 0.") for line in lines)
    assert any(line.startswith("done  t  demonstrations 24, unlabelled 0, calls 24") for line in lines)
    for one in PROMPTS:
        (told,) = [line.split() for line in lines if line.startswith(f"{one.name} ")]
        assert told[2:4] == ["8", "0"]
    assert str(ROWS) in lines
    assert f"next: drpo oirl train {ROWS} --output {ROWS.parent}/router.npz" in lines
    assert lines[-1] == f"next: drpo oirl evaluate {ROWS} --output {ROWS.parent}/evaluation"
    assert len(lines) < 40
    assert len(load_demonstrations(ROWS)) == 24


def test_jsonl_is_events_alone_and_none_is_nothing(server: FakeServer, drpo: Drpo) -> None:
    events = drpo(*START, "--display", "jsonl").events()
    assert sum(isinstance(one, TrialFinished) for one in events) == 24
    assert isinstance(events[-1], CollectionFinished)
    quiet = drpo(*START[:-1], "u", "--display", "none")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_commands_that_look_at_runs_know_a_collection(server: FakeServer, drpo: Drpo, folder: Path) -> None:
    stopped = drpo(*START, "--max-calls", "5", "--display", "plain")
    assert stopped.code == 3
    assert "5 of 24 trials are made" in stopped.out
    assert "drpo resume t --max-calls" in stopped.out
    assert list_runs(drpo) == {"t": "interrupted"}
    assert "resume with: drpo resume t" in drpo("show", "t").out
    assert drpo("export", "t", "--output", "half").code == 0
    assert len(load_demonstrations(folder / "half/t/demonstrations.jsonl")) == 5
    done = drpo("resume", "t", "--max-calls", "100", "--display", "plain")
    assert done.code == 0, done.err
    assert done.out.startswith("resumed  t  queries 8")
    assert list_runs(drpo) == {"t": "done"}
    shown = drpo("show", "t").out
    assert "level-2" in shown
    assert "demonstrations 24, unlabelled 0" in shown
    assert len(json.loads(drpo("show", "t", "--json").out)["collection"]["prompts"]) == 3
    assert isinstance(drpo("events", "t").events()[-1], CollectionFinished)
    assert "done  t" in drpo("events", "t", "--display", "plain").out
    again = drpo("resume", "t", "--display", "plain")
    assert again.code == 0
    assert "level-2" in again.out
    assert len(finished_keys(server)) == 24


def test_finished_collection_is_exported_and_pruned_as_a_search_is(
    server: FakeServer, drpo: Drpo, folder: Path
) -> None:
    assert drpo(*START, "--display", "none").code == 0
    assert drpo(*START[:-1], "u", "--max-calls", "4", "--display", "none").code == 3
    written = ROWS.read_bytes()
    for keep in ("records", "result"):
        assert drpo("prune", "t", "--keep", keep, "--yes").code == 0
        assert drpo("export", "--all", "--output", keep).code == 0
        assert (folder / keep / "t/demonstrations.jsonl").read_bytes() == written
        names = {one.name for one in (folder / keep / "t").iterdir()}
        assert names == {"demonstrations.jsonl", "result.json", "run.json", "events.jsonl"}
        assert drpo("resume", "t", "--display", "none").code == 0
    assert ROWS.read_bytes() == written
    assert "u: is not finished" in drpo("prune", "u", "--keep", "result", "--yes").out
    assert drpo("prune", "t", "u", "--keep", "nothing", "--unfinished", "--yes").code == 0
    assert drpo("runs", "--json").out.strip() == "[]"


def test_dry_run_counts_the_calls_that_the_run_then_makes(server: FakeServer, drpo: Drpo, folder: Path) -> None:
    told = json.loads(drpo(*START, "--dry-run", "--display", "jsonl").out)
    assert "queries 8; prompts 3; draws of each pair 1; checker numeric" in drpo(*START, "--dry-run").out
    assert not (folder / "drpo_runs").exists()
    assert server.log == []
    assert told["expected"]["calls"] == told["expected"]["by_role"]["base"]["calls"] == 24
    assert told["at_most"]["calls"] >= 24
    with_critic = json.loads(drpo(*START, "--checker", "critic", "--dry-run", "--display", "jsonl").out)["expected"]
    calls = {role: one["calls"] for role, one in with_critic["by_role"].items()}
    assert calls == {"base": 24, "metrics": 8, "critic": 24, "optimizer": 0}
    drawn = (*START, "--trials", "3", "--temperature", "1", "--test-share", "0.25", "--dry-run", "--display", "jsonl")
    assert json.loads(drpo(*drawn).out)["expected"]["calls"] == 72


def test_output_in_parquet_with_sides_and_draws(server: FakeServer, drpo: Drpo, folder: Path) -> None:
    options = ("--trials", "2", "--temperature", "0.5", "--test-share", "0.25", "--seed", "7", "--placement", "after")
    outcome = drpo(*START, *options, "--output", "out.parquet", "--display", "plain")
    assert outcome.code == 0, outcome.err
    train = f"next: drpo oirl train {folder / 'out.parquet'} --output {folder / 'router.npz'}"
    assert train in outcome.out.splitlines()
    rows = list(load_demonstrations(folder / "out.parquet"))
    assert len(rows) == 48
    assert Counter(row.split for row in rows) == {"train": 36, "test": 12}
    assert not ROWS.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--checker", "fuzzy"), ("'fuzzy'", "numeric, exact")),
        (("--checker", "regex:("), ("no pattern",)),
        (("--checker", "nowhere:f"), ("cannot be loaded",)),
        (("--checker", "json"), ("no JSON", "'q0'")),
        (("--prompts", "missing.jsonl"), ("missing.jsonl", "No such file")),
        (("--prompts", "sums.jsonl"), ("prompt 1", "'prompt'")),
        (("--trials", "2"), ("temperature",)),
        (("--test-share", "0.01"), ("test side",)),
        (("--test-share", "1.5"), ("1.5",)),
        (("--output", "rows.csv"), (".parquet or .jsonl",)),
        (("--output", "sums.jsonl"), ("is read, and would be overwritten",)),
        (("--output", "prompts.jsonl"), ("is read, and would be overwritten",)),
        (("--num-queries", "9"), ("only 8 queries",)),
        (("--price", "openai:other=1,2"), ("no role uses",)),
    ],
)
def test_wrong_usage_is_one_line_and_nothing_is_begun(
    server: FakeServer, drpo: Drpo, folder: Path, arguments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    assert_one_line(drpo(*START, *arguments), 2, *said)
    assert server.log == []
    assert not (folder / "drpo_runs").exists()


def test_queries_without_answers_are_told_before_any_call(server: FakeServer, drpo: Drpo, folder: Path) -> None:
    (folder / "bare.txt").write_text("What is 1 plus 2?\nWhat is 2 plus 3?\n")
    start = ("oirl", "collect", "bare.txt", "--prompts", "prompts.jsonl", *MODEL)
    assert_one_line(drpo(*start), 2, "needs a reference", "2 of 2", "answer, reference, target", "--checker critic")
    assert server.log == []
    assert drpo(*start, "--checker", r"regex:\d", "--display", "none").code == 0


def test_resume_takes_what_a_collection_takes_alone(server: FakeServer, drpo: Drpo, folder: Path) -> None:
    (folder / "judges.py").write_text("async def judge(query, response, reference):\n    return 0.5\n")
    start = (*START, "--checker", "judges:judge", "--display", "none")
    assert drpo(*start, "--max-calls", "4").code == 3
    assert_one_line(drpo("resume", "t", "--display", "none"), 2, "name it again with --checker judges:judge")
    assert_one_line(drpo("resume", "t", "sums.jsonl", "--display", "none"), 2, "it takes no DATA")
    resumed = ("resume", "t", "--max-calls", "90", "--checker")
    assert_one_line(drpo(*resumed, "numeric", "--display", "none"), 2, "judges:judge, not numeric")
    assert drpo(*resumed, "judges:judge", "--display", "none").code == 0
    assert {row.outcome for row in load_demonstrations(ROWS)} == {0.5}


def test_collection_has_no_prompt_to_generate_with_and_no_fork(server: FakeServer, drpo: Drpo) -> None:
    assert drpo(*START, "--display", "none").code == 0
    assert_one_line(drpo("generate", "Hello?", "--run", "t"), 2, "collects demonstrations", "no prompt")
    assert drpo("fork", "t", "--level", "1").code == 2


@pytest.mark.slow
@pytest.mark.parametrize("display", ["plain", "none"])
def test_first_signal_stores_the_calls_in_flight_and_resume_makes_none_of_them_again(
    server: FakeServer, drpo: Drpo, folder: Path, monkeypatch: pytest.MonkeyPatch, display: str
) -> None:
    with serve(answer, ServerOptions(api_key=KEY, latency=Latency(0.2))) as slow:
        process = spawn_drpo(
            *START,
            *("--display", display, "--max-concurrency", "4"),
            folder=folder,
            environment={"OPENAI_BASE_URL": slow.base_url},
        )
        wait_for(lambda: len(finished_keys(slow)) >= 5)
        process.send_signal(signal.SIGINT)
        outcome = finish(process)
        assert outcome.code == 130, outcome.err
        assert "drpo resume t" in outcome.out + outcome.err
        monkeypatch.setenv("OPENAI_BASE_URL", slow.base_url)
        assert drpo("resume", "t", "--display", "none").code == 0
        assert sorted(Counter(finished_keys(slow)).values()) == [1] * 24
    assert len(load_demonstrations(ROWS)) == 24


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_run_is_resumed_and_repeats_no_finished_call(
    server: FakeServer, drpo: Drpo, folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    assert drpo(*START, "--display", "none").code == 0
    kills = sorted(random.Random(f"{seed}/kills").sample(range(1, 23), 3))
    with serve(answer, ServerOptions(api_key=KEY, latency=Latency(0.1))) as slow:
        monkeypatch.setenv("OPENAI_BASE_URL", slow.base_url)
        common = ("--display", "none", "--max-concurrency", "4")
        commands = [(*START[:-1], "k", *common), *(("resume", "k", "--display", "none") for _ in kills)]
        for command, num_calls in zip(commands, kills, strict=False):
            process = spawn_drpo(*command, folder=folder, environment={})
            wait_for(lambda at_least=num_calls: len(finished_keys(slow)) >= at_least)
            process.kill()
            finish(process)
        assert drpo(*commands[-1]).code == 0
        keys = Counter(finished_keys(slow))
    assert Path("drpo_runs/k/demonstrations.jsonl").read_bytes() == ROWS.read_bytes()
    # What was in flight at a kill is asked again, and no more than that.
    assert len(keys) == 24
    assert keys.total() - len(keys) <= 4 * len(kills)


FACTS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Spain": "Madrid", "Greece": "Athens"}
JUDGE = """
async def judge(query, response, reference):
    return float(reference in response)
"""


@pytest.mark.local
@pytest.mark.retrieval
@pytest.mark.timeout(1800)
def test_embedded_models_are_collected_from_killed_resumed_learned_from_evaluated_and_routed(
    drpo: Drpo, folder: Path
) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra oirl")
    facts = [{"query": f"What is the capital of {land}?", "answer": town} for land, town in FACTS.items()]
    # Nothing so small works these out: there are outcomes of both kinds.
    sums = [{"query": f"What is {a} times {a + 17}?", "answer": str(a * (a + 17))} for a in range(7391, 7397)]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, facts + sums)))
    (folder / "fact_judges.py").write_text(JUDGE)
    write_prompts(folder / "prompts.jsonl")
    start = ("oirl", "collect", "asked.jsonl", "--prompts", "prompts.jsonl", "--model", "local:smollm2")
    judged = ("--checker", "fact_judges:judge", "--display", "none")
    limits = ("--max-reply-tokens", "24", "--test-share", "0.25", "--output", "rows.parquet", "--thread-id", "t")
    process = spawn_drpo(*start, *judged, *limits, folder=folder, environment={})
    events = folder / "drpo_runs/t/events.jsonl"
    wait_for(lambda: events.is_file() and events.read_text().count('"trial_finished"') >= 3, timeout_s=400)
    process.kill()
    finish(process)
    assert drpo("resume", "t", *judged).code == 0
    rows = list(load_demonstrations(folder / "rows.parquet"))
    assert len(rows) == len(PROMPTS) * 12
    assert {row.model for row in rows} == {"local:smollm2"}
    assert {row.outcome for row in rows} == {0.0, 1.0}
    assert all(row.tokens for row in rows)

    learning = ("--reward-model", "neighbours", "--embeddings-cache", "embeddings.sqlite")
    trained = drpo("oirl", "train", "rows.parquet", "--output", "router.npz", *learning)
    assert trained.code == 0, trained.err
    evaluated = drpo("oirl", "evaluate", "rows.parquet", "--output", "tables", "--rounds", "2", *learning)
    assert evaluated.code == 0, evaluated.err
    assert "| router (neighbours) | training |" in (folder / "tables/report.md").read_text()
    chosen = drpo("oirl", "select", "What is the capital of Norway?", "--router", "router.npz")
    assert chosen.out.strip() in {one.prompt for one in PROMPTS}
    answered = drpo("generate", "What is the capital of France?", "--router", "router.npz", "--model", "local:smollm2")
    assert answered.code == 0, answered.err
    assert answered.out.strip()
