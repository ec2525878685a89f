"""The optimisation of ICL examples, against a scripted server: the plan of scores stands in each query."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from drpo_graph import build_settings
from drpo_graph.errors import (
    BudgetSpentError,
    DatasetError,
    FingerprintMismatchError,
    RewardError,
    SettingsError,
    TemplateError,
    UsageError,
)
from drpo_graph.events.schema import Event, ICLExampleFinished, ICLFinished, ICLStarted
from drpo_graph.icl import build_icl_graph, optimize_icl, resume_icl
from drpo_graph.icl.nodes import STEP_SIZE, advance, name_example
from drpo_graph.records import ICLExample, ICLResult
from drpo_graph.retrieval import load_icl_examples
from drpo_graph.runs.runner import RunOptions, resume
from drpo_graph.settings.settings import Settings
from tests.support.command import Drpo, assert_one_line, finish, finished_keys, serve, spawn_drpo, wait_for
from tests.support.fake_server import FakeServer, Latency, Reply, ServerOptions

PUBLISHED = Path(__file__).parents[2].parent / "shared/data/drpo/ICL_examples.json"
METRICS = ("Clarity", "Accuracy")


class Script:
    """Plays all roles: rewrites of a query get the scores of its plan in turn, and ``x`` is no critique."""

    def __init__(self) -> None:
        self._rewrites: Counter[str] = Counter()

    def __call__(self, body: dict[str, object]) -> Reply:
        messages = body["messages"]
        assert isinstance(messages, list)
        text = str(messages[0]["content"])
        if "# Metrics to choose from" in text:
            return Reply([json.dumps({"reasoning": "r", "metrics": list(METRICS), "new_metrics": []})])
        query, scores = re.findall(r"(question \d+ plan (\S+))", text)[-1]
        plan = scores.split(",")
        if '"new_response"' in text:
            texts = []
            for _ in range(int(str(body.get("n", 1)))):
                number = self.count_rewrite(query, text)
                texts.append(json.dumps({"analysis": "a", "new_response": f"v{number}"}))
            return Reply(texts)
        score = plan[int(re.findall(r"v(\d+)", text)[-1])]
        if score == "x":
            return Reply(["no score"])
        names = re.findall(r"^- ([A-Z][\w /-]*?):", text, flags=re.MULTILINE)
        return Reply([json.dumps({name: {"rationale": "because", "score": int(score)} for name in names})])

    def count_rewrite(self, query: str, text: str) -> int:
        """Return the number of the rewrite that is asked for."""
        self._rewrites[query] += 1
        return self._rewrites[query]


class Steady(Script):
    """Rewrites a response into the one after it, whoever asks and however often."""

    def count_rewrite(self, query: str, text: str) -> int:
        """Return the number after that of the response that is shown."""
        return int(re.findall(r"v(\d+)", text)[-1]) + 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with serve(Script(), ServerOptions(latency=Latency(0.04))) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with serve(Steady(), ServerOptions()) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


@pytest.fixture
def drpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Drpo:
    monkeypatch.chdir(tmp_path)
    return Drpo(capsys)


def settings_for(server: FakeServer, **values: object) -> Settings:
    roles = {f"{role}_model": "openai:scripted" for role in ("metrics", "critic", "optimizer")}
    return build_settings({**roles, "base_url": server.base_url, "probe": False, **values})


def plans(*given: str) -> list[ICLExample]:
    return [ICLExample(query=f"question {n} plan {plan}", response="v0") for n, plan in enumerate(given)]


def write_plans(*given: str) -> None:
    Path("mine.json").write_text(json.dumps({one.query: one.response for one in plans(*given)}))


def options_in(folder: Path, events: list[Event] | None = None) -> RunOptions:
    return RunOptions(checkpoint=folder / "runs.sqlite", sinks=(events.append,) if events is not None else ())


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")


async def test_best_response_is_kept_and_not_the_last(server: FakeServer, tmp_path: Path) -> None:
    events: list[Event] = []
    result = await optimize_icl(
        plans("2,4,3,4", "3,2,1,3"),
        settings=settings_for(server),
        num_iters=3,
        thread_id="t",
        options=options_in(tmp_path, events),
    )
    first, second = result.examples
    assert (first.response, first.initial_reward, first.reward, first.iterations) == ("v1", 2, 4, 3)
    assert (second.response, second.reward) == ("v0", 3)
    published = json.loads((tmp_path / "t/out_2_3.json").read_text())
    assert published == {one.query: one.response for one in result.examples}
    assert ICLResult.model_validate_json((tmp_path / "t/result.json").read_bytes()) == result
    assert load_icl_examples(tmp_path / "t/out_2_3.json")[0].response == "v1"
    assert sum(isinstance(one, ICLExampleFinished) for one in events) == 2
    assert isinstance(events[-1], ICLFinished)
    assert result.usage_by_role["optimizer"].calls == 6


async def test_perfect_score_ends_an_example(server: FakeServer, tmp_path: Path) -> None:
    result = await optimize_icl(
        plans("5", "3,5"), settings=settings_for(server), num_iters=4, options=options_in(tmp_path)
    )
    assert [(one.response, one.iterations) for one in result.examples] == [("v0", 0), ("v1", 1)]


async def test_best_of_several_samples_is_kept(server: FakeServer, tmp_path: Path) -> None:
    result = await optimize_icl(
        plans("2,3,4,4"), settings=settings_for(server), num_iters=1, num_samples=3, options=options_in(tmp_path)
    )
    assert (result.examples[0].response, result.examples[0].reward) == ("v2", 4)


async def test_unscored_example_keeps_its_response_and_is_never_zero(server: FakeServer, tmp_path: Path) -> None:
    result = await optimize_icl(
        plans("x,4", "3,x,x"), settings=settings_for(server), num_iters=2, options=options_in(tmp_path)
    )
    nobody, rewritten = result.examples
    assert (nobody.response, nobody.initial_reward, nobody.reward) == ("v0", None, None)
    assert nobody.failure is not None
    assert (rewritten.response, rewritten.reward) == ("v0", 3)
    assert result.num_unscored == 1
    assert sum(result.failures_by_kind.values()) >= 3


async def test_examples_are_worked_on_in_parallel(server: FakeServer, tmp_path: Path) -> None:
    given = plans(*["2,3"] * 6)
    await optimize_icl(given, settings=settings_for(server), num_iters=1, options=options_in(tmp_path))
    assert server.max_in_flight >= 6


async def test_stopped_and_resumed_run_equals_an_unbroken_one_and_repeats_no_call(tmp_path: Path) -> None:
    given, results, keys = plans("2,4,3,4", "3,2,1,3", "x"), [], []
    for name, cap in (("whole", None), ("broken", 6)):
        with serve(Script(), ServerOptions()) as server:
            (tmp_path / name).mkdir()
            options = options_in(tmp_path / name)
            settings = settings_for(server, max_calls=cap)
            if cap is not None:
                with pytest.raises(BudgetSpentError):
                    await optimize_icl(given, settings=settings, num_iters=3, thread_id="t", options=options)
                result = await resume_icl("t", options=options, changes={"max_calls": 200})
            else:
                result = await optimize_icl(given, settings=settings, num_iters=3, thread_id="t", options=options)
            again = await resume_icl("t", options=options)
            assert again == result
            results.append(result)
            keys.append(finished_keys(server))
    assert results[0].examples == results[1].examples
    assert results[0].usage_by_role == results[1].usage_by_role
    assert len(keys[0]) == len(keys[1])


async def test_search_resume_refuses_a_run_over_examples(server: FakeServer, tmp_path: Path) -> None:
    options = options_in(tmp_path)
    await optimize_icl(plans("5"), settings=settings_for(server), thread_id="t", options=options)
    with pytest.raises(UsageError, match="ICL examples"):
        await resume("t", options=options)


async def test_equal_queries_are_refused(server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="share a query"):
        await optimize_icl([*plans("5"), *plans("5")], settings=settings_for(server), options=options_in(tmp_path))


async def test_graph_runs_without_a_checkpointer(server: FakeServer) -> None:
    graph = build_icl_graph(settings_for(server))
    examples = [one.model_dump() for one in plans("2,5")]
    output = await graph.ainvoke({"examples": examples, "num_iters": 2, "num_samples": 1})
    assert output["result"]["examples"][0]["response"] == "v1"


def test_command_runs_resumes_and_shows(server: FakeServer, drpo: Drpo, tmp_path: Path) -> None:
    write_plans("2,4,3", "5")
    search = ("icl", tmp_path / "mine.json", "--model", "openai:scripted", "--num-iters", "2", "--thread-id", "t")
    place = ("--checkpoint", "runs.sqlite")
    stopped = drpo(*search, "--max-calls", "4", *place)
    assert stopped.code == 3, stopped.err
    done = drpo("resume", "t", "--max-calls", "100", *place)
    assert done.code == 0, done.err
    assert "out_2_2.json" in done.out
    assert json.loads((tmp_path / "t/out_2_2.json").read_text())[plans("2,4,3")[0].query] == "v1"
    shown = drpo("show", "t", *place)
    assert "icl-001" in shown.out
    assert drpo("runs", *place).code == 0
    events = drpo("events", "t", *place)
    assert isinstance(events.events()[-1], ICLFinished)


def test_run_whose_critic_was_broken_is_mended_by_the_command_that_it_prints(
    drpo: Drpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_broken, script = True, Steady()

    def says(body: dict[str, object]) -> Reply:
        is_critic = "new_response" not in str(body) and "# Metrics to choose from" not in str(body)
        return Reply(["It depends."]) if is_broken and is_critic else script(body)

    write_plans(*["2,4"] * 24)
    with serve(says, ServerOptions()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        run = ("icl", "mine.json", "--model", "openai:scripted", "--num-iters", "1", "--thread-id", "t")
        stopped = drpo(*run, "--display", "none")
        assert_one_line(stopped, 1, "no usable reply", "Resume with: drpo resume t --retry-failed")
        is_broken = False
        done = drpo("resume", "t", "--retry-failed", "--display", "plain")
        assert done.code == 0, done.err
        num_calls = len(server.finished)
        assert drpo("resume", "t", "--retry-failed", "--display", "none").code == 0
        assert len(server.finished) == num_calls
    result = ICLResult.model_validate_json((tmp_path / "drpo_runs/t/result.json").read_bytes())
    assert [(one.initial_reward, one.reward, one.failure) for one in result.examples] == [(2, 4, None)] * 24
    assert result.failures_by_kind == {}
    assert "out_24_1.json" in done.out


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published data is not beside this checkout")
async def test_published_examples_are_accepted(tmp_path: Path) -> None:
    def judge_all(body: dict[str, object]) -> Reply:
        text = str(body["messages"])
        if "# Metrics to choose from" in text:
            return Reply([json.dumps({"reasoning": "r", "metrics": list(METRICS), "new_metrics": []})])
        return Reply([json.dumps({name: {"rationale": "because", "score": 5} for name in METRICS})])

    examples = load_icl_examples(PUBLISHED)
    with serve(judge_all, ServerOptions()) as server:
        result = await optimize_icl(examples, settings=settings_for(server), options=options_in(tmp_path))
    assert [one.response for one in result.examples] == [one.response for one in examples]


@pytest.mark.local
@pytest.mark.timeout(600)
async def test_embedded_model_optimises_two_examples(tmp_path: Path) -> None:
    # A small model rambles to the token limit, and each cut reply is asked for again with twice the room.
    bounds = {"max_rationale_chars": 120, "max_prompt_chars": 300, "max_metrics": 2, "max_reply_attempts": 1}
    limits = {f"{role}_max_tokens": 256 for role in ("metrics", "critic", "optimizer")}
    settings = build_settings({"model": "local:smollm2", "max_concurrency": 4, **bounds, **limits})
    result = await optimize_icl(
        [ICLExample(query="Why is the sky blue?", response="It is."), ICLExample(query="Add 2 and 2.", response="4")],
        settings=settings,
        num_iters=1,
        options=options_in(tmp_path),
    )
    assert len(result.examples) == 2
    assert all(one.reward is None or 1 <= one.reward <= 5 for one in result.examples)


async def test_template_of_the_user_asks_for_rewrites_and_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    own, script, asked = tmp_path / "own", Script(), list[str]()
    own.mkdir()
    (own / "rewrite_response.md").write_text('MY WORDS "new_response"\n$example\n')

    def respond(body: dict[str, object]) -> Reply:
        asked.append(str(body["messages"]))
        return script(body)

    options = options_in(tmp_path)
    with serve(respond, ServerOptions()) as server:
        settings = settings_for(server, max_calls=2, templates=own)
        with pytest.raises(BudgetSpentError):
            await optimize_icl(plans("2,4"), settings=settings, num_iters=1, thread_id="t", options=options)
        with pytest.raises(FingerprintMismatchError, match="template"):
            await resume_icl("t", options=options, changes={"max_calls": 20, "templates": None})
        assert (await resume_icl("t", options=options, changes={"max_calls": 20})).examples[0].response == "v1"
        assert sum("MY WORDS" in one for one in asked) == 1
        (own / "rewrite_response.md").write_text("No example.")
        with pytest.raises(TemplateError, match=r"\$example"):
            await optimize_icl(plans("2,4"), settings=settings, options=options)


def test_finished_run_is_exported_and_pruned_as_a_search_is(steady: FakeServer, drpo: Drpo, tmp_path: Path) -> None:
    write_plans("2,4,3", "5")
    search = ("icl", "mine.json", "--model", "openai:scripted", "--num-iters", "2", "--display", "none")
    assert drpo(*search, "--thread-id", "t").code == 0
    assert drpo(*search, "--thread-id", "u", "--max-calls", "4").code == 3
    written = {one.name: one.read_bytes() for one in (tmp_path / "drpo_runs/t").glob("*.json")}
    assert drpo("export", "--all", "--output", "out").code == 0
    assert {one.name for one in (tmp_path / "out/t").iterdir()} == {*written, "run.json", "events.jsonl"}
    assert all((tmp_path / "out/t" / name).read_bytes() == content for name, content in written.items())
    assert {one.name for one in (tmp_path / "out/u").iterdir()} == {"run.json", "events.jsonl"}
    for keep in ("records", "result"):
        assert drpo("prune", "t", "--keep", keep, "--yes").code == 0
        assert drpo("resume", "t", "--display", "none").code == 0
        assert "mean reward 3.50 -> 4.50" in drpo("show", "t").out
    assert "u: is not finished" in drpo("prune", "u", "--keep", "result", "--yes").out
    assert drpo("prune", "t", "u", "--keep", "nothing", "--unfinished", "--yes").code == 0
    assert drpo("runs", "--json").out.strip() == "[]"


@pytest.mark.slow
def test_killed_run_is_resumed_and_repeats_no_finished_call(
    drpo: Drpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plans("2,4,3,3,4", "3,2,1,4,4", "2,3,4,4,4")
    files, keys = [], []
    for name, kills in (("whole", []), ("killed", [3, 8, 14])):
        with serve(Steady(), ServerOptions(latency=Latency(0.1))) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
            common = ("--thread-id", name, "--display", "none")
            start = ("icl", "mine.json", "--model", "openai:scripted", "--num-iters", "4", *common)
            commands = [start, *(("resume", name, "--display", "none") for _ in kills)]
            for command, num_calls in zip(commands, kills, strict=False):
                process = spawn_drpo(*command, folder=tmp_path, environment={})
                wait_for(lambda at_least=num_calls, one=server: len(finished_keys(one)) >= at_least)
                process.kill()
                finish(process)
            assert drpo(*commands[-1]).code == 0
            keys.append(Counter(finished_keys(server)))
        files.append((tmp_path / "drpo_runs" / name / "out_3_4.json").read_bytes())
    assert files[0] == files[1]
    # What was in flight at a kill is asked again, and no more than that: three examples at a time.
    assert set(keys[0]) <= set(keys[1])
    assert (keys[1] - keys[0]).total() <= 3 * 3


def test_dry_run_tells_what_the_run_then_uses_and_makes_nothing(steady: FakeServer, drpo: Drpo, tmp_path: Path) -> None:
    write_plans("1,2,3,4", "2,2,2")
    search = ("icl", "mine.json", "--model", "openai:scripted", "--num-iters", "3", "--num-samples", "2")
    told = json.loads(drpo(*search, "--dry-run", "--display", "jsonl").out)
    assert "2; 3 iterations of 2" in drpo(*search, "--dry-run").out
    assert not (tmp_path / "drpo_runs").exists()
    assert steady.finished == []
    assert drpo(*search, "--thread-id", "t", "--display", "none").code == 0
    used = json.loads((tmp_path / "drpo_runs/t/result.json").read_bytes())["usage_by_role"]
    expected = {role: one["calls"] for role, one in told["expected"]["by_role"].items() if one["calls"]}
    assert expected["optimizer"] == used["optimizer"]["calls"] == 6
    assert expected["metrics"] == used["metrics"]["calls"] == 2
    # Equal rewrites are judged once.
    assert expected["critic"] == 14 >= used["critic"]["calls"]
    assert told["at_most"]["calls"] > told["expected"]["calls"]
    assert 0.3 < told["expected"]["by_role"]["optimizer"]["prompt_tokens"] / used["optimizer"]["prompt_tokens"] < 3


def test_run_over_examples_has_no_prompt_to_generate_with(steady: FakeServer, drpo: Drpo) -> None:
    write_plans("5")
    assert drpo("icl", "mine.json", "--model", "openai:scripted", "--thread-id", "t", "--display", "none").code == 0
    assert_one_line(drpo("generate", "Hello?", "--run", "t"), 2, "ICL examples", "--icl-examples")


async def test_resume_loads_no_code_that_only_the_checkpoint_names(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = (
        "from pathlib import Path\n\nPath('imported').touch()\n\nasync def judge(query, response):\n    raise OSError\n"
    )
    (tmp_path / "judge_of_icl.py").write_text(source)
    settings = settings_for(server, reward=["judge_of_icl:judge"])
    with pytest.raises(RewardError):
        await optimize_icl(plans("2,4"), settings=settings, num_iters=1, thread_id="t", options=options_in(tmp_path))
    (tmp_path / "imported").unlink()
    monkeypatch.delitem(sys.modules, "judge_of_icl")
    with pytest.raises(SettingsError, match="name them again"):
        await resume_icl("t", options=options_in(tmp_path))
    assert not (tmp_path / "imported").exists()


async def test_examples_are_taken_in_steps_each_once() -> None:
    state: Any = {"num_examples": 2 * STEP_SIZE + 1, "position": 0, "query_ids": []}
    taken: list[str] = []
    while (update := await advance(state, cast(Any, None)))["query_ids"]:
        assert len(update["query_ids"]) <= STEP_SIZE
        taken += update["query_ids"]
        state |= update
    assert taken == [name_example(one + 1) for one in range(2 * STEP_SIZE + 1)]


async def test_run_of_an_earlier_version_has_taken_all_examples_at_once() -> None:
    state: Any = {"query_ids": ["icl-001", "icl-002"]}
    state |= await advance(state, cast(Any, None))
    assert (state["num_examples"], state["query_ids"]) == (2, [])


def stop_at_start(event: Event) -> None:
    if isinstance(event, ICLStarted) and not event.is_resumed:
        raise BudgetSpentError("Enough is seen.", resume_flags="")


async def test_run_that_was_stopped_as_it_began_finds_its_examples(server: FakeServer, tmp_path: Path) -> None:
    options, settings = options_in(tmp_path), settings_for(server)
    with pytest.raises(BudgetSpentError):
        await optimize_icl(
            plans("5", "5"), settings=settings, thread_id="t", options=replace(options, sinks=(stop_at_start,))
        )
    result = await resume_icl("t", options=options)
    assert [one.query for one in result.examples] == [one.query for one in plans("5", "5")]
