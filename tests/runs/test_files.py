"""The files of a run: published names and shapes, plain data, replaced in one step, logs appended."""

import io
import json
import logging
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from langgraph.store.memory import InMemoryStore

from drpo_graph.cli.app import _run
from drpo_graph.errors import CheckpointError
from drpo_graph.events.log import EventLog
from drpo_graph.events.schema import Warned, parse_event
from drpo_graph.records import Candidate, Critique, MetricScore, Rollout, RunResult
from drpo_graph.runs.files import describe_level
from drpo_graph.runs.logs import LogFile, append_settings
from drpo_graph.safety.private_files import write_atomically
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.tree import creation_order, load_tree
from tests.support.command import KEY, SMALL, serve
from tests.support.fake_server import ServerOptions
from tests.support.oracle import build_responder
from tests.support.searches import fake_settings, run_search
from tests.support.world import World

FILES = (
    "args.txt",
    "log.txt",
    "algo_output/output.pkl",
    "algo_output/trace.txt",
    "algo_output/output.json",
    "best_prompt.txt",
    "result.json",
    "events.jsonl",
)


class PlainUnpickler(pickle.Unpickler):
    """Refuses every class and function: only builtin data loads."""

    def find_class(self, module: str, name: str) -> object:
        raise AssertionError(f"the pickle names {module}.{name}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run ``one`` with one query per level, and ``two`` with two and a validation set."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "held_out.txt").write_text("Held out one?\nHeld out two?\nHeld out three?\n")
    options = ServerOptions(models=["world"], api_key=KEY)
    with pytest.MonkeyPatch.context() as patch, serve(build_responder(seed=3), options) as server:
        patch.chdir(folder)
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("OPENAI_BASE_URL", server.base_url)
        start = ["optimize", *SMALL, "--display", "none", "--thread-id"]
        assert _run([*start, "one", "--queries-per-level", "1"], is_debug=False) == 0
        assert _run([*start, "two", "--validation", "held_out.txt"], is_debug=False) == 0
        yield folder / "drpo_runs"


def test_a_finished_run_has_all_published_files_and_ours(runs: Path) -> None:
    assert [name for name in FILES if not (runs / "one" / name).is_file()] == []
    strays = [path.name for path in (runs / "one").rglob(".*")]
    assert strays == []
    assert {path.stat().st_mode & 0o777 for path in (runs / "one").rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (runs, runs / "one", runs / "one" / "algo_output")} == {0o700}


def test_the_pickle_holds_plain_builtins_that_say_what_the_json_says(runs: Path) -> None:
    algorithm = runs / "one" / "algo_output"
    loaded = PlainUnpickler(io.BytesIO((algorithm / "output.pkl").read_bytes())).load()
    assert loaded["result"] == json.loads((runs / "one" / "result.json").read_text())
    assert loaded["tree"] == json.loads((algorithm / "tree.json").read_text())


def test_the_output_has_the_published_shape_level_by_level(runs: Path) -> None:
    result = RunResult.model_validate_json((runs / "one" / "result.json").read_bytes())
    levels = json.loads((runs / "one" / "algo_output" / "output.json").read_text())
    assert list(levels) == [f"level {number}" for number in range(1, len(result.trace) + 1)]
    for level in levels.values():
        assert list(level) == ["Prompt", "Evaluation of the prompt"]
        assert level["Evaluation of the prompt"]
        for entry in level["Evaluation of the prompt"].values():
            assert list(entry) == ["rationale", "score"]
            assert re.fullmatch(r"[1-5]", entry["score"])
            assert isinstance(entry["rationale"], str)
    last = levels[f"level {len(levels)}"]
    assert last["Prompt"] == result.system_prompt == (runs / "one" / "best_prompt.txt").read_text()[:-1]
    trace = (runs / "one" / "algo_output" / "trace.txt").read_text()
    assert all(f"Level {n}:\n{level['Prompt']}" in trace for n, level in enumerate(levels.values(), 1))


def test_an_evaluation_is_of_the_level_and_not_of_the_validation(runs: Path) -> None:
    levels = json.loads((runs / "two" / "algo_output" / "output.json").read_text())
    tree = json.loads((runs / "two" / "algo_output" / "tree.json").read_text())
    asked = {rollout["query_id"] for candidate in tree for rollout in candidate["rollouts"]}
    assert not any("held_out" in query_id for query_id in asked)
    assert "held_out" not in json.dumps(levels)
    result = RunResult.model_validate_json((runs / "two" / "result.json").read_bytes())
    assert result.validation is not None
    assert result.validation.num_queries == 3


def test_the_log_has_one_line_per_level_and_one_per_response(runs: Path) -> None:
    lines = (runs / "one" / "log.txt").read_text().splitlines()
    levels = [re.search(r" INFO .*level (\d) of 2: best .+ at \d\.\d\d, ", line) for line in lines]
    assert [found[1] for found in levels if found] == ["0", "1", "2"]
    responses = [
        re.search(r" INFO .*level \d: \S+ on \S+: reward \d\.\d\d \(.+\); response: .", line) for line in lines
    ]
    assert len(list(filter(None, responses))) == len(lines) - 3


def test_the_settings_file_names_every_setting_and_no_key(runs: Path) -> None:
    text = (runs / "one" / "args.txt").read_text()
    names = [line.partition(": ")[0] for line in text.splitlines() if line]
    assert names == list(Settings.model_fields)
    assert KEY not in text


def test_logs_are_appended_and_results_replaced_on_resume(runs: Path) -> None:
    folder = runs / "two"
    logs = {name: (folder / name).read_bytes() for name in ("args.txt", "log.txt", "events.jsonl")}
    results = {path: path.read_bytes() for path in (*folder.glob("*.json"), *(folder / "algo_output").iterdir())}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs.parent)
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        assert _run(["resume", "two", "--display", "none"], is_debug=False) == 0
    for name, content in logs.items():
        now = (folder / name).read_bytes()
        assert now.startswith(content)
        assert name == "log.txt" or len(now) > len(content)
    assert {path: path.read_bytes() for path in results} == results


def rollout(query_id: str, **scores: float) -> Rollout:
    given = tuple(MetricScore(metric=name, score=score, rationale=f"{name}!") for name, score in scores.items())
    critique = Critique(scores=given) if given else None
    return Rollout(candidate_id="0", query_id=query_id, response="r", critique=critique, reward=None)


@pytest.mark.parametrize(
    ("rollouts", "expected"),
    [
        ([], {}),
        ([rollout("a")], {}),
        ([rollout("a", Clarity=4)], {"Clarity": {"rationale": "Clarity!", "score": "4"}}),
        (
            [rollout("a", Clarity=4), rollout("b", Clarity=3), rollout("c")],
            {"Clarity": {"rationale": "[a] Clarity!\n[b] Clarity!", "score": "3.5"}},
        ),
    ],
)
def test_scores_of_several_queries_are_averaged_into_texts(rollouts: list[Rollout], expected: object) -> None:
    candidate = Candidate(id="0", parent_id=None, depth=0, prompt="p", origin="initial", rollouts=tuple(rollouts))
    assert describe_level(candidate) == {"Prompt": "p", "Evaluation of the prompt": expected}


async def test_the_tree_is_in_creation_order_with_rollouts_in_their_levels_order() -> None:
    world = World(1, num_queries=30, num_heldout=2)
    settings = fake_settings(depth=3, beam_size=2, n_actions=11, queries_per_level=3)
    run = await run_search(settings, world, world.train_queries, validation=world.heldout_queries)
    tree = await load_tree(run.archive)
    assert [one.id for one in tree] == sorted((one.id for one in tree), key=creation_order)
    assert creation_order("1.0.2") < creation_order("1.0.10") < creation_order("1.1.0") < creation_order("10.0.0")
    levels = list((await run.archive.get_all("levels")).values())
    for candidate in tree:
        assert [one.query_id for one in candidate.rollouts] == levels[candidate.depth]["query_ids"]
        assert candidate.reward is not None
    best = next(one for one in tree if one.id == run.result.candidate_id)
    assert (best.prompt, best.reward) == (run.result.system_prompt, run.result.reward)


async def test_candidates_of_an_unfinished_level_have_rollouts_and_no_reward_yet() -> None:
    archive = Archive(InMemoryStore(), "t")
    await archive.put_candidates([{"id": "0", "parent_id": None, "depth": 0, "origin": "initial", "prompt": "p"}])
    await archive.put_rollout(rollout("a", Clarity=4))
    (root,) = await load_tree(archive)
    assert [one.query_id for one in root.rollouts] == ["a"]
    assert (root.reward, root.path_reward) == (None, None)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result.json"
    write_atomically(target, b"old")
    write_atomically(tmp_path / "deep" / "er" / "new.txt", b"new")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "result.json"]
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"


def read_events(path: Path) -> Sequence[str]:
    return [parse_event(line).message for line in path.read_bytes().splitlines()]  # type: ignore[union-attr]


def test_events_are_appended_also_after_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "events.jsonl"
    for message in ("first", "second \N{LINE SEPARATOR} line"):
        log = EventLog(path)
        log(Warned(run_id="t", message=message))
        log.close()
    assert path.read_bytes().count(b"\n") == 2
    assert read_events(path) == ["first", "second \N{LINE SEPARATOR} line"]
    path.write_bytes(path.read_bytes() + b'{"half')
    log = EventLog(path)
    log(Warned(run_id="t", message="lone surrogate \ud800"))
    log.close()
    lines = path.read_bytes().splitlines()
    assert (len(lines), lines[2]) == (4, b'{"half')
    assert json.loads(lines[3])["message"] == "lone surrogate \ud800"


def test_a_full_disk_is_told_by_the_event_log_and_ignored_by_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    log = EventLog(Path("/dev/full"))
    with pytest.raises(CheckpointError, match=r"Event log /dev/full: the disk is full\. Free space and run"):
        log(Warned(run_id="t", message="lost"))
    log.close()
    handler = LogFile("/dev/full")
    handler.emit(logging.makeLogRecord({"msg": "lost"}))
    handler.close()
    assert capsys.readouterr().err == ""


def test_settings_are_added_to_what_is_there(tmp_path: Path) -> None:
    append_settings(tmp_path, Settings(seed=1))
    append_settings(tmp_path, Settings(seed=2))
    text = (tmp_path / "args.txt").read_text()
    assert [line for line in text.splitlines() if line.startswith("seed")] == ["seed: 1", "seed: 2"]
