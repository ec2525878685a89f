"""The pause between levels: approve, veto and edit, in the graph, in a parent app, and around a stored run."""

from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command

from drpo_graph.calls.roles import Models
from drpo_graph.errors import BudgetSpentError, ReviewError, SettingsError
from drpo_graph.events.schema import Event, LevelStarted, ReviewDecided, ReviewRequested
from drpo_graph.graph import build_graph
from drpo_graph.parts.protocols import RewriteRequest
from drpo_graph.records import Candidate, RunResult
from drpo_graph.runs.partial_results import find_standing
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.search.reviews import ReviewDecision, ReviewedCandidate, ReviewRequest, read_decision
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.tree import load_tree
from tests.support.oracle import Oracle, OracleTransport
from tests.support.searches import fake_settings, oracle_context, run_search
from tests.support.world import INITIAL_PROMPT, World

APPROVE = {"author": "Ada"}
SHAPE = {"depth": 4, "beam_size": 2, "n_actions": 2, "queries_per_level": 2}
SETTINGS = fake_settings(approve=True, **SHAPE)
WORLD = World(seed=3)
QUERIES, HELD_OUT = list(WORLD.train_queries[:12]), list(WORLD.heldout_queries[:4])
EDIT = "You are an assistant whose answers Ada has improved."


class Parent(TypedDict, total=False):
    queries: list[str]
    validation_queries: list[str]
    system_prompt: str
    result: dict[str, Any]


class Reviewed:
    """A search that is reviewed; each answer comes from a newly built graph and context, as after a restart."""

    def __init__(self, *, is_embedded: bool = False, validation: list[str] | None = None) -> None:
        self.saver, self.store = InMemorySaver(), InMemoryStore()
        self.questions: list[ReviewRequest] = []
        self.events: list[Event] = []
        self.output: dict[str, Any] = {}
        self._is_embedded = is_embedded
        self._given: Any = {"queries": QUERIES, "validation_queries": validation or []}

    async def step(self, settings: Settings = SETTINGS) -> ReviewRequest | None:
        """Run to the next question, or to the end."""
        transport = OracleTransport(Oracle(WORLD))
        context = oracle_context(settings, transport, store=self.store, sinks=(self.events.append,))
        graph: Any = build_graph(settings, checkpointer=None if self._is_embedded else self.saver)
        if self._is_embedded:
            parent = StateGraph(Parent)
            parent.add_node("optimise", graph)
            parent.add_edge(START, "optimise")
            parent.add_edge("optimise", END)
            graph = parent.compile(checkpointer=self.saver)
        config = {"configurable": {"thread_id": "test"}, "recursion_limit": RECURSION_LIMIT}
        self.output = await graph.ainvoke(self._given, config, context=context)
        if "__interrupt__" not in self.output:
            return None
        self.questions.append(ReviewRequest.model_validate(self.output["__interrupt__"][0].value))
        return self.questions[-1]

    async def answer(self, decision: object, settings: Settings = SETTINGS) -> ReviewRequest | None:
        """Answer the question and run on."""
        self._given = Command(resume=decision)
        return await self.step(settings)

    async def approve_all(self) -> "Reviewed":
        """Run to the end."""
        question = await self.step() if not self.questions else self.questions[-1]
        while question is not None:
            question = await self.answer(APPROVE)
        return self

    @property
    def result(self) -> RunResult:
        """What was found."""
        return RunResult.model_validate(self.output["result"])

    async def tree(self) -> dict[str, Candidate]:
        """Return all candidates by id."""
        return {one.id: one for one in await load_tree(Archive(self.store, self.result.thread_id))}


async def unreviewed(validation: list[str] | None = None) -> RunResult:
    return (await run_search(fake_settings(**SHAPE), WORLD, QUERIES, validation=validation or [])).result


def findings(result: RunResult) -> dict[str, Any]:
    return result.model_dump(
        mode="json", include={"system_prompt", "candidate_id", "reward", "path_reward", "depth", "trace", "validation"}
    )


@pytest.mark.parametrize("is_embedded", [False, True])
@pytest.mark.parametrize("validation", [[], HELD_OUT])
async def test_approving_every_beam_finds_what_an_unreviewed_search_finds(
    is_embedded: bool, validation: list[str]
) -> None:
    run = await Reviewed(is_embedded=is_embedded, validation=validation).approve_all()
    assert findings(run.result) == findings(await unreviewed(validation))
    assert [(one.level, one.is_last) for one in run.questions] == [(1, False), (2, False), (3, True)]
    assert all(len(one.candidates) == 2 for one in run.questions)
    assert all(one.prompt and one.parent_prompt for question in run.questions for one in question.candidates)
    assert sum(isinstance(one, ReviewRequested) for one in run.events) >= 3
    decided = [one for one in run.events if isinstance(one, ReviewDecided)]
    assert [(one.level, one.author, one.vetoed_ids) for one in decided] == [
        (1, "Ada", ()),
        (2, "Ada", ()),
        (3, "Ada", ()),
    ]


async def test_vetoed_candidate_has_no_children_and_is_not_delivered() -> None:
    reviewed = Reviewed(validation=HELD_OUT)
    question = await reviewed.step()
    assert question is not None
    await reviewed.answer({"author": "Ada", "veto": [question.candidates[0].id], "note": "too stiff"})
    await reviewed.approve_all()
    vetoed = reviewed.questions[0].candidates[0]
    tree = await reviewed.tree()
    assert tree[vetoed.id].prompt == vetoed.prompt
    assert {one.parent_id for one in tree.values() if one.depth == 2} == {reviewed.questions[0].candidates[1].id}
    assert reviewed.result.validation is not None
    compared = [tree[one.candidate_id].prompt for one in reviewed.result.validation.comparisons]
    assert vetoed.prompt not in [*compared, reviewed.result.system_prompt]
    # The progress of the level counts what is left to be run.
    level = [one.num_rollouts for one in reviewed.events if isinstance(one, LevelStarted) and one.level == 2]
    assert level[0] == 4


async def test_edit_is_a_child_of_human_origin_with_its_author_beside_the_rewrites() -> None:
    reviewed = Reviewed()
    question = await reviewed.step()
    assert question is not None
    await reviewed.answer({"author": "Ada", "edits": {question.candidates[0].id: EDIT}})
    await reviewed.approve_all()
    tree = await reviewed.tree()
    children = [one for one in tree.values() if one.parent_id == reviewed.questions[0].candidates[0].id]
    human = [one for one in children if one.origin == "human"]
    assert [(one.prompt, one.author, one.depth) for one in human] == [(EDIT, "Ada", 2)]
    assert human[0].reward is not None
    assert len(human[0].rollouts) == 2
    assert [one.origin for one in children] == ["rewrite", "rewrite", "human"]
    assert all(one.author is None for one in tree.values() if one.origin != "human")


async def test_edit_of_a_vetoed_candidate_takes_its_place() -> None:
    reviewed = Reviewed()
    question = await reviewed.step()
    assert question is not None
    ids = [one.id for one in question.candidates]
    await reviewed.answer({"author": "Ada", "veto": ids, "edits": {ids[0]: EDIT}})
    await reviewed.approve_all()
    tree = await reviewed.tree()
    assert [(one.prompt, one.parent_id) for one in tree.values() if one.depth == 2] == [
        (EDIT, reviewed.questions[0].candidates[0].id)
    ]
    # It is what the search goes on from, and stands in the history that the optimizer is shown.
    assert all(one.parent_id == "2.0.0" for one in tree.values() if one.depth == 3)
    assert "2.0.0" in reviewed.result.trace


async def test_veto_at_the_end_decides_what_is_delivered() -> None:
    reviewed = Reviewed()
    await reviewed.step()
    await reviewed.answer(APPROVE)
    last = await reviewed.answer(APPROVE)
    assert last is not None
    assert last.is_last
    await reviewed.answer({"author": "Ada", "veto": [last.candidates[0].id]})
    assert reviewed.result.system_prompt == reviewed.questions[-1].candidates[1].prompt
    assert reviewed.result.system_prompt != (await unreviewed()).system_prompt


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("yes", "'yes'"),
        ({"author": " "}, "author: it is blank"),
        ({"author": "Ada", "veto": ["9.9.9"]}, "9.9.9"),
        ({"author": "Ada", "veto": ["1.0.0", "1.0.1"]}, "nothing is left"),
        ({"author": "Ada", "edits": {"1.0.0": "\n"}}, "is blank"),
        ({"author": "Ada", "approve": True}, "approve"),
    ],
)
async def test_answer_that_cannot_be_used_is_asked_again_with_what_was_wrong(answer: object, said: str) -> None:
    reviewed = Reviewed()
    question = await reviewed.step()
    assert question is not None
    assert [one.id for one in question.candidates] == ["1.0.0", "1.0.1"]
    await reviewed.answer(answer)
    await reviewed.approve_all()
    assert [one.level for one in reviewed.questions] == [1, 1, 2, 3]
    assert reviewed.questions[0].problem == ""
    assert said in reviewed.questions[1].problem
    assert findings(reviewed.result) == findings(await unreviewed())


async def test_pause_ends_where_reviews_are_turned_off() -> None:
    reviewed = Reviewed()
    assert await reviewed.step() is not None
    reviewed._given = None
    assert await reviewed.step(fake_settings(**SHAPE)) is None
    assert findings(reviewed.result) == findings(await unreviewed())


def request_for(prompt: str, *, is_last: bool = False) -> ReviewRequest:
    candidate = ReviewedCandidate(
        id="1.0.0", prompt=prompt, origin="rewrite", reward=3.0, path_reward=3.0, parent_id="0", parent_prompt="Help."
    )
    return ReviewRequest(run_id="t", level=1, is_last=is_last, takes_edits=not is_last, candidates=(candidate,))


@pytest.mark.parametrize(
    ("prompt", "edit", "said"),
    [
        ("Answer {name}.", "Answer.", "name"),
        ("Answer.", "x" * 130, "at most 100"),
        ("Answer.", "Answer.", "changes nothing"),
    ],
)
def test_edit_keeps_to_the_run_s_rules(prompt: str, edit: str, said: str) -> None:
    settings = fake_settings(placeholders="auto", max_prompt_chars=100)
    decision = ReviewDecision(author="Ada", edits={"1.0.0": edit})
    with pytest.raises(ReviewError, match=said):
        read_decision(decision, request_for(prompt), settings, initial_prompt=prompt)


def test_edit_needs_a_level_that_scores_it() -> None:
    decision = ReviewDecision(author="Ada", edits={"1.0.0": EDIT})
    with pytest.raises(ReviewError, match="no level follows"):
        read_decision(decision, request_for("Answer.", is_last=True), fake_settings(), initial_prompt="Answer.")


async def test_vetoed_prompt_is_not_the_best_so_far_while_its_edit_is_tried() -> None:
    reviewed = Reviewed()
    question = await reviewed.step()
    assert question is not None
    ids = [one.id for one in question.candidates]
    # The next level has no call to spend.
    poor = SETTINGS.model_copy(update={"max_calls": 1})
    with pytest.raises(BudgetSpentError):
        await reviewed.answer({"author": "Ada", "veto": ids, "edits": {ids[0]: EDIT}}, poor)
    archive = Archive(reviewed.store, question.run_id)
    graph = build_graph(SETTINGS, checkpointer=reviewed.saver)
    values = (await graph.aget_state({"configurable": {"thread_id": "test"}})).values
    standing = await find_standing(values, archive, SETTINGS)
    assert standing is not None
    assert standing.system_prompt == INITIAL_PROMPT
    assert (await archive.get_all("levels"))["000001"]["beam"] == []
    assert INITIAL_PROMPT not in [one.prompt for one in question.candidates]


async def test_graph_that_could_not_keep_a_pause_makes_no_call() -> None:
    transport = OracleTransport(Oracle(WORLD))
    context = oracle_context(SETTINGS, transport, store=InMemoryStore())
    with pytest.raises(SettingsError, match="checkpointer"):
        await build_graph(SETTINGS).ainvoke({"queries": QUERIES}, context=context)  # type: ignore[arg-type]
    assert transport.requests == []


async def test_other_queries_on_the_thread_are_a_run_of_their_own() -> None:
    reviewed = await Reviewed().approve_all()
    first, reviewed.questions = reviewed.questions, []
    reviewed._given = {"queries": list(WORLD.train_queries[12:24])}
    await reviewed.approve_all()
    assert [one.level for one in reviewed.questions] == [1, 2, 3]
    assert {one.run_id for one in reviewed.questions}.isdisjoint(one.run_id for one in first)
    alone = (await run_search(fake_settings(**SHAPE), WORLD, WORLD.train_queries[12:24])).result
    assert findings(reviewed.result) == findings(alone)
    assert reviewed.result.initial_reward == alone.initial_reward


async def test_veto_of_what_was_good_enough_lets_the_search_go_on() -> None:
    settings = SETTINGS.model_copy(update={"stop_reward": 2.2, "depth": 3})

    async def run(decision: dict[str, object]) -> Reviewed:
        reviewed = Reviewed()
        question = await reviewed.step(settings)
        assert question is not None
        good = [one for one in question.candidates if (one.path_reward or 0) >= 2.2]
        assert len(good) == 1, [one.path_reward for one in question.candidates]
        assert (question.is_last, question.takes_edits) == (True, True)
        await reviewed.answer(
            {"author": "Ada", **{key: value(good[0].id) for key, value in decision.items()}}, settings
        )  # type: ignore[operator]
        return reviewed

    ended = await run({})
    assert ended.result.depth == 1
    for decision in ({"veto": lambda one: [one]}, {"edits": lambda one: {one: EDIT}}):
        reviewed = await run(decision)
        assert [one.level for one in reviewed.questions] == [1, 2]


async def test_prompt_that_was_ruled_out_is_not_tried_again() -> None:
    class Stubborn:
        """Proposes the same two prompts at each level."""

        async def rewrite(self, request: RewriteRequest, *, models: Models) -> list[str]:
            return ["You are an assistant. First.", "You are an assistant. Second."]

    async def run() -> list[list[str]]:
        saver, store = InMemorySaver(), InMemoryStore()
        given: Any = {"queries": QUERIES}
        seen = []
        for decision in ({"author": "Ada", "veto": ["1.0.0"]}, APPROVE, APPROVE, None):
            transport = OracleTransport(Oracle(WORLD))
            context = oracle_context(SETTINGS, transport, store=store, rewriter=Stubborn())
            graph: Any = build_graph(SETTINGS, checkpointer=saver)
            config = {"configurable": {"thread_id": "test"}, "recursion_limit": RECURSION_LIMIT}
            output = await graph.ainvoke(given, config, context=context)
            if "__interrupt__" not in output:
                return [*seen, [output["system_prompt"]]]
            seen.append([one["prompt"] for one in output["__interrupt__"][0].value["candidates"]])
            given = Command(resume=decision)
        raise AssertionError("it never ended")

    first, *later = await run()
    vetoed = first[[one.endswith("First.") for one in first].index(True)]
    assert len(later) == 3
    assert all(vetoed not in one for one in later)
