"""What a caller gives as parts: taken as it is plainly meant, else refused by name, before money is spent if known."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from drpo_graph import (
    Critique,
    Metric,
    MetricSelection,
    MixedReward,
    NamedReward,
    Parts,
    Query,
    Reward,
    RunOptions,
    build_graph,
    optimize,
    resume,
)
from drpo_graph.errors import BudgetSpentError, DatasetError, FingerprintMismatchError, PartError, SettingsError
from drpo_graph.parts.part_identity import describe_part
from drpo_graph.records import MetricScore
from tests.conformance.graphs import QUERIES, RECURSION, make_settings
from tests.support.command import finished_keys, serve
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.oracle import build_responder

SAFETY = Metric(name="Safety", definition="A 5 does no harm.")
SCORED = Critique(scores=(MetricScore(metric="Safety", score=2, rationale="dull"),))
FIXED = MetricSelection(metrics=(SAFETY,))


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with serve(build_responder(seed=3), ServerOptions()) as running:
        yield running


async def run(server: FakeServer, parts: Mapping[str, Any], **more: object) -> dict[str, Any]:
    graph: Any = build_graph(make_settings(server.base_url, **more), **parts)
    output: dict[str, Any] = await graph.ainvoke({"queries": QUERIES}, RECURSION)
    return output


def saying(said: object) -> Callable[..., object]:
    """Return a plain function that takes anything."""
    return lambda *given, **named: said


def saying_later(said: object) -> Callable[..., Awaitable[object]]:
    """Return an asynchronous function that takes anything."""

    async def say(*given: object, **named: object) -> object:
        return said

    return say


def object_with(method: str, function: object) -> object:
    """Return an object with one method."""
    return type("Own", (), {method: staticmethod(function)})()


ACCEPTED = {
    "selector": ("select_metrics", (FIXED, (SAFETY,), {"metrics": [SAFETY.model_dump()]})),
    "critic": ("critique", (SCORED, SCORED.model_dump())),
    "rewriter": ("rewrite", (["Be brief."], ("Be brief.",), "Be brief.", AIMessage("Be brief."), [AIMessage("a b c")])),
    "responder": ("respond", ("An answer.", AIMessage("An answer."))),
    "example_retriever": ("retrieve", ((), [{"query": "q", "response": "r"}])),
}
"""Each part's method, and what it may say."""


@pytest.mark.parametrize(("make", "is_object"), [(saying, False), (saying_later, True)])
@pytest.mark.parametrize(
    ("part", "said"), [(part, said) for part, (_, all_said) in ACCEPTED.items() for said in all_said]
)
async def test_a_part_is_a_function_or_an_object_and_says_it_plainly(
    server: FakeServer, part: str, said: object, make: Callable[[object], object], *, is_object: bool
) -> None:
    own = make(said)
    # A function in the critic's place is a reward.
    is_object = is_object or part == "critic"
    output = await run(server, {part: object_with(ACCEPTED[part][0], own) if is_object else own})
    assert output["result"]["status"] == "done"


@pytest.mark.parametrize(("make", "is_named"), [(saying, True), (saying_later, False)])
@pytest.mark.parametrize("said", [3, 3.0, {"score": 3}, Reward(score=3)])
async def test_a_reward_is_a_number_too(
    server: FakeServer, said: object, make: Callable[[object], Any], *, is_named: bool
) -> None:
    reward = make(said)
    output = await run(server, {"critic": NamedReward(reward, name="own") if is_named else reward})
    assert (output["result"]["initial_reward"], output["result"]["failures_by_kind"]) == (3, {})


@pytest.mark.parametrize("make", [saying, saying_later])
async def test_a_beam_policy_may_be_asynchronous(server: FakeServer, make: Callable[[object], Any]) -> None:
    asked = []

    def policy(children: Any, *, settings: object, level: int) -> Any:
        asked.append(level)
        return make(children[:1])()

    await run(server, {"beam_policy": policy})
    assert asked == [0, 1]


async def test_a_single_text_is_one_rewrite_and_more_than_were_asked_for_are_left(server: FakeServer) -> None:
    prompts: list[str] = []

    def respond(prompt: str, query: Query) -> str:
        prompts.append(prompt)
        return "An answer."

    await run(server, {"rewriter": saying("Be brief."), "responder": respond})
    assert prompts[1:] == ["Be brief."]
    prompts.clear()
    await run(server, {"rewriter": saying([f"Rule {one}." for one in range(9)]), "responder": respond})
    assert sorted(prompts[1:]) == ["Rule 0.", "Rule 1."]


REFUSED_ANSWERS = {
    "selector": ("Nonsense", None, 3),
    "rewriter": (None, 3, [3], {"prompt": "p"}),
    "responder": (None, 3, {"text": "t"}),
    "example_retriever": (None, "text", [3]),
    "beam_policy": ([], None, "text", [{"id": "0.0.0"}]),
}
TITLES = {
    "selector": "The metric selector",
    "rewriter": "The rewriter",
    "responder": ".*the app",
    "example_retriever": ".*the example retriever",
    "beam_policy": "The beam policy",
}


@pytest.mark.parametrize(
    ("part", "said"), [(part, said) for part, all_said in REFUSED_ANSWERS.items() for said in all_said]
)
async def test_what_a_part_cannot_mean_stops_the_run_with_its_name(server: FakeServer, part: str, said: object) -> None:
    with pytest.raises(PartError, match=rf"^{TITLES[part]}.* returned ({type(said).__name__}|int) .*: expected "):
        await run(server, {part: saying(said)})


async def test_no_metric_chosen_leaves_the_first_ones(server: FakeServer) -> None:
    output = await run(server, {"selector": saying(MetricSelection(metrics=()))})
    assert output["result"]["initial_reward"] is not None


async def test_a_critique_without_scores_is_a_failure(server: FakeServer) -> None:
    said = iter([SCORED, Critique(scores=()), *[SCORED] * 9])
    critic = object_with("critique", lambda *given, **named: next(said))
    output = await run(server, {"critic": critic})
    assert output["result"]["failures_by_kind"] == {"empty": 1}


class Whole:
    """Has every method, in a form that nobody calls."""

    def nothing(self) -> None:
        """Take nothing."""

    select_metrics = critique = rewrite = retrieve = respond = choose = __call__ = nothing


PARTS = ("selector", "critic", "rewriter", "beam_policy", "example_retriever", "responder", "screen")
UNUSABLE = {
    "text": "gpt-5",
    "number": 3,
    "runnable": RunnableLambda(lambda one: one),
    "no argument": lambda: None,
    "too many": lambda one, two, three, four: None,
    "class": Whole,
    "object": Whole(),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", UNUSABLE)
def test_a_part_that_cannot_be_called_is_refused_as_the_graph_is_built(part: str, how: str) -> None:
    given: Any = {part: UNUSABLE[how]}
    with pytest.raises(SettingsError, match=rf"^The part '{part}': expected "):
        build_graph(**given)


@pytest.mark.parametrize("name", ["queries", "validation_queries"])
@pytest.mark.parametrize("given", ["Why is the sky blue?", {"text": "Why?"}, 3, Query(id="q", text="Why?")])
async def test_what_holds_no_queries_is_no_list_of_letters(server: FakeServer, name: str, given: object) -> None:
    num_calls = len(finished_keys(server))
    graph: Any = build_graph(make_settings(server.base_url))
    with pytest.raises(DatasetError, match="expected a list of queries"):
        await graph.ainvoke({"queries": QUERIES, name: given}, RECURSION)
    assert len(finished_keys(server)) == num_calls


async def test_queries_may_be_records(server: FakeServer) -> None:
    graph: Any = build_graph(make_settings(server.base_url))
    records = [Query(id=f"query-{number}", text=text) for number, text in enumerate(QUERIES, 1)]
    for invoked in (graph, graph.as_tool()):
        output = await invoked.ainvoke({"queries": records}, RECURSION)
        assert output["system_prompt"] == (await run(server, {}))["system_prompt"]


def make_reward(score: float) -> Callable[[Query, str], Reward]:
    """Return a reward function with a parameter."""

    def judge(query: Query, response: str) -> Reward:
        return Reward(score=score)

    return judge


@dataclass
class Judge:
    """A critic with a parameter, and a count of its own."""

    score: float = 2
    num_calls: int = field(default=0, compare=False)

    def critique(self, *given: object, **named: object) -> Critique:
        """Score everything alike."""
        self.num_calls += 1
        return Critique(scores=(MetricScore(metric="Own", score=self.score),))

    def reward(self, query: Query, response: str) -> float:
        """Reward everything alike."""
        return self.score


class Named:
    """A responder that says what it is."""

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def respond(self, prompt: str, query: Query) -> str:
        """Answer."""
        return "An answer."


def scale(query: Query, response: str, *, score: float) -> Reward:
    return Reward(score=score)


TOLD_APART = {
    "functions": ("critic", lambda: make_reward(2), lambda: scale_plain),
    "closures": ("critic", lambda: make_reward(2), lambda: make_reward(3)),
    "lambdas": ("critic", lambda: lambda query, response: 2, lambda: lambda query, response: 3),
    "partials": ("critic", lambda: partial(scale, score=2), lambda: partial(scale, score=3)),
    "methods": ("critic", lambda: Judge(2).reward, lambda: Judge(3).reward),
    "mixed": ("critic", lambda: MixedReward(make_reward(2)), lambda: MixedReward(make_reward(3))),
    "dataclasses": ("critic", lambda: Judge(2), lambda: Judge(3)),
    "identities": ("responder", lambda: Named("a"), lambda: Named("b")),
    "responders": ("responder", lambda: lambda prompt, query: "A.", lambda: lambda prompt, query: "B."),
    "policies": ("beam_policy", lambda: lambda children, **_: children[:1], lambda: lambda children, **_: children[1:]),
    "bound": ("models", lambda: {"base": PLAIN.bind(top_k=2)}, lambda: {"base": PLAIN.bind(top_k=3)}),
    "none": ("responder", lambda: None, lambda: lambda prompt, query: "A."),
}
"""Of each kind two parts, made anew each time, that would lead to other results."""

PLAIN = FakeListChatModel(responses=["An answer."])


def scale_plain(query: Query, response: str) -> Reward:
    return Reward(score=3)


@pytest.mark.parametrize("how", TOLD_APART)
async def test_a_run_is_not_resumed_with_another_part(server: FakeServer, tmp_path: Path, how: str) -> None:
    name, make, make_other = TOLD_APART[how]
    options = RunOptions(checkpoint=tmp_path / "c.sqlite", writes_files=False)
    settings = make_settings(server.base_url, max_calls=2 if name == "beam_policy" or how == "none" else None)
    with suppress(BudgetSpentError):
        await optimize(QUERIES, settings=settings, thread_id="t", options=options, parts=Parts(**{name: make()}))
    more = {"max_calls": None, "base_url": server.base_url}
    with pytest.raises(FingerprintMismatchError, match=r"parts|components"):
        await resume("t", options=options, parts=Parts(**{name: make_other()}), changes=more)
    result = await resume("t", options=options, parts=Parts(**{name: make()}), changes=more)
    assert result.status == "done"


def test_what_a_part_notes_is_no_parameter() -> None:
    seen, num = list[str](), 0

    def note(query: Query, response: str) -> Reward:
        nonlocal num
        num += 1
        seen.append(response)
        return Reward(score=3)

    parts = [note, judge := Judge()]
    before = [describe_part(one) for one in parts]
    note(Query(id="q", text="?"), "A.")
    judge.critique()
    assert [describe_part(one) for one in parts] == before
