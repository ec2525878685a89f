"""A level none of whose candidates can be scored: run once more on other queries, then the run stops and says why."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from langgraph.store.memory import InMemoryStore

from drpo_graph.errors import RunInterruptedError, SearchStalledError
from drpo_graph.events.schema import Event, LevelFinished, LevelStarted, Warned
from drpo_graph.graph import build_graph
from drpo_graph.models.request import Choice, Reply, Request
from drpo_graph.records import RunResult, Usage
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.stop import StopSignal
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.sqlite_file import open_checkpoint
from tests.support.oracle import Oracle, OracleTransport, role_of
from tests.support.searches import fake_settings, oracle_context, run_search
from tests.support.world import World

WORLD = World(seed=3, num_queries=21, num_heldout=1)


@dataclass
class BlindTransport(OracleTransport):
    """A critic that cannot be read on some queries, whatever the answer, or a base model that says nothing there."""

    unreadable: Sequence[str] = ()
    role: str = "critic"
    oracle: Oracle = field(default_factory=lambda: Oracle(WORLD))

    async def send(self, request: Request) -> Reply:
        """Return the oracle's reply, or one of no use."""
        reply = await super().send(request)
        told = "\n".join(one["content"] for one in request.messages)
        if role_of(request.messages) == self.role and any(query in told for query in self.unreadable):
            return Reply((Choice(text="It depends." if self.role == "critic" else ""),), Usage(calls=1))
        return reply


async def order_of_queries(**values: object) -> list[str]:
    """Return the texts of a run's queries in its order."""
    run = await run_search(fake_settings(depth=2, **values), WORLD, WORLD.train_queries)
    return [(await run.archive.query(one)).text for one in await run.archive.query_order()]


STREAM = {"query_policy": "stream", "queries_per_level": 1, "beam_size": 1, "n_actions": 2}


async def test_level_is_run_again_on_the_next_query_and_the_search_goes_on() -> None:
    texts, events = await order_of_queries(**STREAM), list[Event]()
    transport = BlindTransport(unreadable=[texts[2]])
    settings = fake_settings(depth=5, **STREAM)
    run = await run_search(settings, WORLD, WORLD.train_queries, transport=transport, sinks=(events.append,))
    assert run.result.depth == 4
    levels = [level for _, level in sorted((await run.archive.get_all("levels")).items())]
    queries = [[(await run.archive.query(str(one))).text for one in level["query_ids"]] for level in levels]
    # The second level took two queries, and all later ones the one after.
    assert queries == [[texts[index]] for index in (0, 1, 3, 4, 5)]
    assert all(child["reward"] is not None for level in levels for child in level["children"])
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert len(warnings) == 1
    assert warnings[0].startswith("level 2: no candidate could be scored (unparsable: critique on query")
    assert [event.level for event in events if isinstance(event, LevelStarted)] == [0, 1, 2, 2, 3, 4]
    assert [event.level for event in events if isinstance(event, LevelFinished)] == [0, 1, 2, 3, 4]
    # The same rewrites, and none of them asked for again.
    assert sum(role == "optimizer" for role, _ in transport.requests) == 4


@pytest.mark.parametrize(
    ("role", "kind", "culprit"), [("critic", "unparsable", "critic"), ("base", "empty", "base model")]
)
async def test_second_failure_stops_the_run_and_says_why(role: str, kind: str, culprit: str) -> None:
    texts = await order_of_queries(**STREAM)
    transport = BlindTransport(unreadable=texts[2:4], role=role)
    with pytest.raises(SearchStalledError) as caught:
        await run_search(fake_settings(depth=5, **STREAM), WORLD, WORLD.train_queries, transport=transport)
    assert str(caught.value).startswith(f"No candidate could be scored, 2 times in a row (level 2: {kind}: ")
    assert f"Check the {culprit} with `drpo models check`" in str(caught.value)
    assert (caught.value.is_resumable, caught.value.resume_flags) == (True, "--retry-failed")


async def test_root_is_run_again_as_any_level() -> None:
    texts = await order_of_queries(**STREAM)
    transport = BlindTransport(unreadable=texts[:1])
    run = await run_search(fake_settings(depth=3, **STREAM), WORLD, WORLD.train_queries, transport=transport)
    assert run.result.initial_reward is not None
    assert run.result.depth == 2


async def test_last_level_without_other_queries_leaves_the_former_beam() -> None:
    texts = await order_of_queries(**STREAM, num_queries=3)
    transport, store = BlindTransport(unreadable=texts[2:]), InMemoryStore()
    settings = fake_settings(depth=5, num_queries=3, **STREAM)
    run = await run_search(settings, WORLD, WORLD.train_queries, transport=transport, store=store)
    assert run.result.reward is not None
    assert run.result.candidate_id.startswith("1.")
    children = (await Archive(store, "test").get_all("levels"))["000002"]["children"]
    assert isinstance(children, list)
    assert {child["reward"] for child in children if isinstance(child, dict)} == {None}


async def test_one_unreadable_critique_leaves_its_candidate_out_of_the_beam() -> None:
    texts = await order_of_queries(**STREAM)
    answers: list[str] = []

    def spoil_first(request: Request) -> None:
        if role_of(request.messages) == "critic" and texts[2] in request.messages[0]["content"] and not answers:
            answers.append(request.messages[0]["content"])
            transport.unreadable = [request.messages[0]["content"]]

    transport = BlindTransport()
    transport.before = spoil_first
    run = await run_search(
        fake_settings(depth=4, **{**STREAM, "beam_size": 2, "n_actions": 3}),
        WORLD,
        WORLD.train_queries,
        transport=transport,
    )
    level = (await run.archive.get_all("levels"))["000002"]
    children = level["children"]
    assert isinstance(children, list)
    unscored = [child["id"] for child in children if isinstance(child, dict) and child["reward"] is None]
    assert len(unscored) >= 1
    assert not set(unscored) & set(level["beam"])  # type: ignore[arg-type]
    # Equal prompts share their critique.
    assert run.result.failures_by_kind == {"unparsable": 1}


async def test_repeated_level_survives_a_stop_anywhere(tmp_path: Path) -> None:
    texts = await order_of_queries(**STREAM)
    settings = fake_settings(depth=4, **STREAM)

    async def run(name: str, stop_at: int | None) -> tuple[RunResult, int]:
        """Run, and go on once where the run was stopped before its call of this number."""
        checkpoint = tmp_path / f"{name}.sqlite"
        transport = BlindTransport(unreadable=[texts[2]])
        num_sent = 0
        async with open_checkpoint(checkpoint) as opened:
            for may_stop in (True, False):
                context = oracle_context(settings, transport, store=opened.store)

                def count(_: Request, stop: StopSignal = context.stop, may_stop: bool = may_stop) -> None:
                    nonlocal num_sent
                    num_sent += 1
                    if may_stop and num_sent == stop_at:
                        stop.request("killed")

                transport.before = count
                graph = build_graph(settings, checkpointer=opened.saver)
                config = {"configurable": {"thread_id": "t"}, "recursion_limit": RECURSION_LIMIT}
                first = (await graph.aget_state(config)).created_at is None  # type: ignore[arg-type]
                try:
                    output = await graph.ainvoke(
                        {"queries": list(WORLD.train_queries)} if first else None,
                        config,  # type: ignore[arg-type]
                        context=context,  # type: ignore[arg-type]
                        durability="async",
                    )
                except RunInterruptedError:
                    continue
                return RunResult.model_validate(output["result"]), num_sent
        raise AssertionError("stopped twice")

    unbroken, num_calls = await run("unbroken", None)
    for stop_at in range(1, num_calls, 4):
        assert await run(f"stopped-{stop_at}", stop_at) == (unbroken, num_calls)
