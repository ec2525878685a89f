"""The collection of demonstrations, against a scripted server."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from drpo_graph import Query
from drpo_graph.data.rows import AnsweredQuery
from drpo_graph.errors import (
    BudgetSpentError,
    DatasetError,
    DemonstrationsError,
    FingerprintMismatchError,
    ReplyError,
    RewardError,
    SettingsError,
    UsageError,
)
from drpo_graph.events.schema import CollectionFinished, CollectionStarted, Event, TrialFinished
from drpo_graph.oirl.collection import (
    TrialOptions,
    build_collection_graph,
    collect_demonstrations,
    resume_collection,
)
from drpo_graph.oirl.tables import load_demonstrations
from drpo_graph.parts.checkers import CheckFunction
from drpo_graph.runs.runner import resume
from tests.oirl.collection.script import PROMPTS, answer, expected_outcome, options_in, settings_for, sums
from tests.support.command import finished_keys, serve
from tests.support.fake_server import FakeServer, Reply, ServerOptions

AGAIN = Query(id="again", text=sums(1)[0].query.text)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serve(answer, ServerOptions(log_bodies=True)) as running:
        yield running


def bodies(server: FakeServer) -> list[dict[str, object]]:
    """Return what was asked."""
    return [entry["body"] for entry in server.finished]


async def test_every_prompt_is_tried_on_every_query(server: FakeServer, tmp_path: Path) -> None:
    events: list[Event] = []
    result = await collect_demonstrations(
        sums(5), PROMPTS, settings=settings_for(server), thread_id="t", options=options_in(tmp_path, events)
    )
    expected = {(n, level): expected_outcome(n, level) for n in range(5) for level in range(3)}
    rows = list(load_demonstrations(tmp_path / "t/demonstrations.jsonl"))
    assert [row.outcome for row in rows] == list(expected.values())
    assert {row.model for row in rows} == {"openai:scripted"}
    assert {row.split for row in rows} == {""}
    assert [row.prompt_name for row in rows[:3]] == ["level-0", "level-1", "level-2"]
    assert all(row.tokens is not None and row.tokens > 5 for row in rows)
    means = [sum(expected[n, level] for n in range(5)) / 5 for level in range(3)]
    assert [one.mean_outcome for one in result.prompts] == pytest.approx(means)
    assert isinstance(events[0], CollectionStarted)
    assert sum(isinstance(one, TrialFinished) for one in events) == 15
    assert isinstance(events[-1], CollectionFinished)
    assert result.usage_by_role["base"].calls == 15
    assert not (tmp_path / "t/unlabelled.jsonl").exists()


async def test_nothing_given_asks_the_bundled_problems_under_the_bundled_prompts(tmp_path: Path) -> None:
    with serve(lambda body: Reply(["It is 5."]), ServerOptions()) as server:
        result = await collect_demonstrations(settings=settings_for(server), options=options_in(tmp_path))
    assert (result.num_queries, len(result.prompts), result.num_labelled) == (24, 6, 144)
    assert all(0 < (one.mean_outcome or 0) < 0.5 for one in result.prompts)


@pytest.mark.parametrize("placement", ["system", "after"])
async def test_prompt_stands_where_it_is_wanted(server: FakeServer, tmp_path: Path, placement: str) -> None:
    await collect_demonstrations(
        sums(1),
        PROMPTS[:1],
        settings=settings_for(server),
        trials=TrialOptions(placement="system" if placement == "system" else "after"),
        options=options_in(tmp_path),
    )
    (body,) = bodies(server)
    messages = body["messages"]
    question, prompt = sums(1)[0].query.text, PROMPTS[0].prompt
    if placement == "system":
        assert messages == [{"role": "system", "content": prompt}, {"role": "user", "content": question}]
    else:
        assert messages == [{"role": "user", "content": f"{question}\n\n{prompt}"}]


async def test_draws_of_a_pair_are_calls_of_their_own(server: FakeServer, tmp_path: Path) -> None:
    settings = settings_for(server, base={"temperature": 0.7})
    result = await collect_demonstrations(
        sums(3), PROMPTS[:2], settings=settings, trials=TrialOptions(num_trials=4), options=options_in(tmp_path)
    )
    assert result.num_labelled == len(set(finished_keys(server))) == 24
    assert len({body["seed"] for body in bodies(server)}) == 24
    with pytest.raises(UsageError, match="temperature above 0"):
        await collect_demonstrations(sums(3), PROMPTS, settings=settings_for(server), trials=TrialOptions(num_trials=2))


async def test_test_side_is_drawn_by_text_and_held_out_prompts_are_tried_there_alone(
    server: FakeServer, tmp_path: Path
) -> None:
    prompts = [*PROMPTS[:2], PROMPTS[2].model_copy(update={"split": "test"})]
    trials = TrialOptions(test_share=0.25)
    for name, given in (("t", sums(8)), ("u", sums(8)[::-1])):
        result = await collect_demonstrations(
            given,
            prompts,
            settings=settings_for(server),
            trials=trials,
            thread_id=name,
            options=options_in(tmp_path),
        )
        assert [one.num_labelled for one in result.prompts] == [8, 8, 2]
    tables = [load_demonstrations(tmp_path / name / "demonstrations.jsonl") for name in "tu"]
    sides = [{(row.query, row.split) for row in table} for table in tables]
    assert sides[0] == sides[1]
    assert sum(split == "test" for _, split in sides[0]) == 2
    with pytest.raises(UsageError, match="held out"):
        await collect_demonstrations(sums(8), prompts, settings=settings_for(server))


async def test_side_that_a_dataset_gives_is_kept(server: FakeServer, tmp_path: Path) -> None:
    given = [one._replace(split="test" if n % 2 else "train") for n, one in enumerate(sums(4))]
    await collect_demonstrations(
        given, PROMPTS[:1], settings=settings_for(server), thread_id="t", options=options_in(tmp_path)
    )
    rows = load_demonstrations(tmp_path / "t/demonstrations.jsonl")
    assert [row.split for row in rows] == ["train", "test", "train", "test"]


async def test_critic_gives_an_outcome_from_zero_to_one_or_none(server: FakeServer, tmp_path: Path) -> None:
    given = [AnsweredQuery(Query(id=f"q{n}", text=f"What is {n} plus 0?"), None) for n in (10, 12, 13)]
    result = await collect_demonstrations(
        given,
        PROMPTS[2:],
        settings=settings_for(server),
        checker="critic",
        thread_id="t",
        options=options_in(tmp_path),
    )
    rows = load_demonstrations(tmp_path / "t/demonstrations.jsonl")
    assert [row.outcome for row in rows] == [0.0, 0.5]
    assert result.num_unlabelled == 1
    (told,) = map(json.loads, (tmp_path / "t/unlabelled.jsonl").read_text().splitlines())
    assert told["kind"] == "unparsable"
    assert result.usage_by_role["metrics"].calls == 3


def make_check(*, is_broken: bool) -> CheckFunction:
    """Return a check that fails on one question."""

    async def judge(query: Query, response: str, reference: str | None) -> float:
        if query.id == "q1" and is_broken:
            raise ReplyError("not today", kind="reward_error")
        return float(str(reference).removeprefix("#### ") in response)

    return judge


async def test_check_that_cannot_be_made_is_no_zero_and_may_be_made_again(server: FakeServer, tmp_path: Path) -> None:
    options, settings = options_in(tmp_path), settings_for(server, max_calls=8)
    with pytest.raises(BudgetSpentError, match="of 9 trials are made"):
        await collect_demonstrations(
            sums(3),
            PROMPTS,
            settings=settings.model_copy(update={"max_concurrency": 1}),
            checker=make_check(is_broken=True),
            thread_id="t",
            options=options,
        )
    result = await resume_collection(
        "t",
        checker=make_check(is_broken=False),
        options=options,
        changes={"max_calls": None},
        retries_failed=True,
    )
    assert (result.num_labelled, result.num_unlabelled) == (9, 0)
    assert len(finished_keys(server)) == 9


async def test_unlabelled_trials_stay_so_where_nobody_lets_them_be_made_again(
    server: FakeServer, tmp_path: Path
) -> None:
    result = await collect_demonstrations(
        sums(3),
        PROMPTS,
        settings=settings_for(server),
        checker=make_check(is_broken=True),
        options=options_in(tmp_path),
    )
    assert (result.num_labelled, result.num_unlabelled) == (6, 3)
    assert result.failures_by_kind == {"reward_error": 3}


async def test_checker_that_raises_stops_the_run_and_mended_it_goes_on(server: FakeServer, tmp_path: Path) -> None:
    is_mended = False

    async def judge(query: Query, response: str, reference: str | None) -> float:
        if query.id == "q2" and not is_mended:
            raise KeyError("bug")
        return 1.0

    options = options_in(tmp_path)
    with pytest.raises(RewardError, match="bug"):
        await collect_demonstrations(
            sums(4), PROMPTS, settings=settings_for(server), checker=judge, thread_id="t", options=options
        )
    is_mended = True
    assert (await resume_collection("t", checker=judge, options=options)).num_labelled == 12
    assert len(finished_keys(server)) == len(set(finished_keys(server))) == 12


@pytest.mark.parametrize("cap", [1, 5, 11])
async def test_stopped_and_resumed_run_equals_an_unbroken_one_and_repeats_no_call(tmp_path: Path, cap: int) -> None:
    results, written, keys = [], [], []
    for name, limit in (("whole", None), ("broken", cap)):
        with serve(answer, ServerOptions()) as server:
            (tmp_path / name).mkdir()
            options, settings = options_in(tmp_path / name), settings_for(server, max_calls=limit)
            if limit is None:
                result = await collect_demonstrations(
                    sums(6), PROMPTS, settings=settings, thread_id="t", options=options
                )
            else:
                with pytest.raises(BudgetSpentError):
                    await collect_demonstrations(sums(6), PROMPTS, settings=settings, thread_id="t", options=options)
                result = await resume_collection("t", options=options, changes={"max_calls": 200})
            assert await resume_collection("t", options=options) == result
            keys.append(sorted(finished_keys(server)))
        results.append(result)
        written.append((tmp_path / name / "t/demonstrations.jsonl").read_bytes())
    assert results[0] == results[1]
    assert written[0] == written[1]
    assert keys[0] == keys[1]


async def test_demonstrations_go_to_the_file_that_is_named_from_a_resumed_run_too(
    server: FakeServer, tmp_path: Path
) -> None:
    output, options = tmp_path / "deep/rows.parquet", options_in(tmp_path)
    with pytest.raises(BudgetSpentError):
        await collect_demonstrations(
            sums(4),
            PROMPTS,
            settings=settings_for(server, max_calls=3),
            trials=TrialOptions(output=output),
            thread_id="t",
            options=options,
        )
    events: list[Event] = []
    await resume_collection("t", options=options_in(tmp_path, events), changes={"max_calls": None})
    assert len(load_demonstrations(output)) == 12
    assert not (tmp_path / "t/demonstrations.jsonl").exists()
    assert isinstance(events[-1], CollectionFinished)
    assert events[-1].output == str(output)
    with pytest.raises(DemonstrationsError, match=r"\.parquet or \.jsonl"):
        await collect_demonstrations(settings=settings_for(server), trials=TrialOptions(output=tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    ("given", "checker", "said"),
    [
        ([], "numeric", "no query"),
        ([sums(1)[0]._replace(reference=None)], "numeric", "needs a reference"),
        ([sums(1)[0]._replace(reference=None)], "exact", "--checker critic"),
        ([sums(1)[0]._replace(reference="none")], "numeric", "no number"),
        ([sums(1)[0], sums(1)[0]._replace(query=AGAIN, reference="9")], "numeric", "two references"),
    ],
)
async def test_what_is_wrong_with_the_queries_is_told_in_one_line_before_any_call(
    server: FakeServer, tmp_path: Path, given: list[AnsweredQuery], checker: str, said: str
) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        await collect_demonstrations(
            given, PROMPTS, settings=settings_for(server), checker=checker, options=options_in(tmp_path)
        )
    assert "\n" not in str(caught.value)
    assert server.log == []
    assert list(tmp_path.iterdir()) == []


async def test_a_text_that_comes_twice_is_asked_once(server: FakeServer, tmp_path: Path) -> None:
    given = [*sums(2), sums(1)[0]._replace(query=AGAIN)]
    result = await collect_demonstrations(given, PROMPTS, settings=settings_for(server), options=options_in(tmp_path))
    assert (result.num_queries, result.num_labelled) == (2, 6)


async def test_resume_loads_no_code_that_only_the_checkpoint_names(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "from pathlib import Path\n\nPath('imported').touch()\n\n"
    (tmp_path / "own_judge.py").write_text(
        f"{source}async def judge(query, response, reference):\n    return 1\n\nother = judge\n"
    )
    options, spec = options_in(tmp_path), "own_judge:judge"
    with pytest.raises(BudgetSpentError):
        await collect_demonstrations(
            sums(2), PROMPTS, settings=settings_for(server, max_calls=1), checker=spec, thread_id="t", options=options
        )
    (tmp_path / "imported").unlink()
    monkeypatch.delitem(sys.modules, "own_judge")
    with pytest.raises(SettingsError, match="name it again with --checker own_judge:judge"):
        await resume_collection("t", options=options)
    assert not (tmp_path / "imported").exists()
    with pytest.raises(FingerprintMismatchError, match="not numeric"):
        await resume_collection("t", checker="numeric", options=options)
    result = await resume_collection("t", checker=spec, options=options, changes={"max_calls": None})
    assert result.num_labelled == 6


async def test_runs_of_other_kinds_are_not_taken_for_a_collection(server: FakeServer, tmp_path: Path) -> None:
    options = options_in(tmp_path)
    await collect_demonstrations(sums(1), PROMPTS, settings=settings_for(server), thread_id="t", options=options)
    with pytest.raises(UsageError, match="collects demonstrations"):
        await resume("t", options=options)


async def test_refused_request_leaves_its_trial_unlabelled(tmp_path: Path) -> None:
    def refuse_one(body: dict[str, object]) -> Reply:
        if "What is 1 plus" in str(body["messages"]):
            return Reply([], status=400, error_message="too rude")
        return answer(body)

    with serve(refuse_one, ServerOptions()) as server:
        settings = settings_for(server, max_concurrency=1)
        result = await collect_demonstrations(sums(3), PROMPTS, settings=settings, options=options_in(tmp_path))
    assert (result.num_labelled, result.num_unlabelled) == (6, 3)


async def test_blank_reply_is_wrong_and_not_unknown(tmp_path: Path) -> None:
    with serve(lambda body: Reply([""]), ServerOptions()) as server:
        result = await collect_demonstrations(
            sums(2), PROMPTS, settings=settings_for(server), options=options_in(tmp_path)
        )
    assert [one.mean_outcome for one in result.prompts] == [0, 0, 0]


def as_input(count: int) -> dict[str, object]:
    """Return a graph's input."""
    return {
        "questions": [{"query": one.query.model_dump(), "reference": one.reference} for one in sums(count)],
        "prompts": [one.model_dump() for one in PROMPTS],
        "num_trials": 1,
        "placement": "system",
        "output": "",
    }


async def test_graph_runs_in_memory_and_takes_other_questions_for_a_run_of_their_own(server: FakeServer) -> None:
    graph = build_collection_graph(settings_for(server), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    for count in (2, 4):
        output = await graph.ainvoke(as_input(count), config)  # type: ignore[call-overload]
        assert sum(one["num_labelled"] for one in output["result"]["prompts"]) == 3 * count
    assert (await build_collection_graph(settings_for(server)).ainvoke(as_input(1)))["result"]["num_queries"] == 1  # type: ignore[arg-type]


async def test_state_stays_as_small_over_many_steps() -> None:
    saver = InMemorySaver()
    with serve(answer, ServerOptions()) as server:
        graph = build_collection_graph(settings_for(server), step_size=3, checkpointer=saver)
        config = {"configurable": {"thread_id": "t"}, "recursion_limit": 1000}
        output = await graph.ainvoke(as_input(40), config)  # type: ignore[call-overload]
        assert sum(one["num_labelled"] for one in output["result"]["prompts"]) == 120
        assert len(finished_keys(server)) == 120
    sizes = [
        len(json.dumps([state.values, [str(task.interrupts) for task in state.tasks]], default=str))
        for state in graph.get_state_history(config)  # type: ignore[arg-type]
        if state.values.get("units") and "result" not in state.values
    ]
    assert len(sizes) >= 20
    assert max(sizes) < 1.2 * min(sizes)


def stop_at_start(event: Event) -> None:
    if isinstance(event, CollectionStarted) and not event.is_resumed:
        raise BudgetSpentError("Enough is seen.", resume_flags="")


async def test_run_that_was_stopped_as_it_began_finds_its_queries(server: FakeServer, tmp_path: Path) -> None:
    options, settings = options_in(tmp_path), settings_for(server)
    with pytest.raises(BudgetSpentError):
        await collect_demonstrations(
            sums(2), PROMPTS, settings=settings, thread_id="t", options=replace(options, sinks=(stop_at_start,))
        )
    result = await resume_collection("t", options=options)
    assert (result.num_queries, result.num_labelled) == (2, 6)
