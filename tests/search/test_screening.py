"""A search that writes more rewrites than it runs: what the screen is shown, what it decides, and what is resumed."""

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Checkpointer

from drpo_graph.calls.roles import Models
from drpo_graph.errors import FingerprintMismatchError, RunInterruptedError, ScreenError, SettingsError
from drpo_graph.graph import build_graph
from drpo_graph.models.request import Request
from drpo_graph.oirl.screening import RewardScreen
from drpo_graph.parts.protocols import RewriteRequest
from drpo_graph.parts.screens import RewriteScreen, ScreenChoice, ScreenRequest
from drpo_graph.records import RunResult
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.search.session import RunContext
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.sqlite_file import open_checkpoint
from tests.support.oracle import Oracle, OracleTransport
from tests.support.searches import fake_settings, oracle_context, run_search
from tests.support.word_embeddings import WordEmbeddings
from tests.support.world import World

WORLD = World(seed=3, num_queries=41, num_heldout=5)
SIZE: dict[str, Any] = {"depth": 5, "max_depth_increase": 0, "n_proposed": 4}


def make_screen() -> RewardScreen:
    """Return ours, which learns as soon as there is anything to learn from."""
    return RewardScreen(WordEmbeddings(1), "words", min_trials=1, min_prompts=1)


class Recorder:
    """Keeps what it is shown, and chooses as another screen does, or the last rewrites first."""

    def __init__(self, inner: RewriteScreen | None = None) -> None:
        self.requests: list[ScreenRequest] = []
        self.kept: list[tuple[str, ...]] = []
        """Texts, best first."""
        self._inner = inner

    async def choose(self, request: ScreenRequest) -> ScreenChoice:
        self.requests.append(request)
        choice = ScreenChoice(tuple(reversed(range(len(request.rewrites))))[: request.num_kept])
        if self._inner is not None:
            choice = await self._inner.choose(request)
        self.kept.append(tuple(request.rewrites[one] for one in choice.kept))
        return choice


class Writer:
    """Writes what it is told to."""

    def __init__(self, *rewrites: str) -> None:
        self._rewrites = rewrites

    async def rewrite(self, request: RewriteRequest, *, models: Models) -> Sequence[str]:
        """Return so many as are asked for, or all."""
        return [f"{one} ({request.candidate_id})" for one in self._rewrites][: request.num_rewrites]


async def search(settings: Settings, **parts: Any) -> Archive:
    """Return what a search with held-out queries leaves in its archive."""
    held_out = WORLD.heldout_queries
    return (await run_search(settings, WORLD, WORLD.train_queries, validation=held_out, **parts)).archive


async def test_optimizer_writes_more_and_no_more_are_run_than_without() -> None:
    proposed, plain = fake_settings(**SIZE), fake_settings(**{**SIZE, "n_proposed": None})
    screened = await run_search(proposed, WORLD, WORLD.train_queries, screen=make_screen())
    without = await run_search(plain, WORLD, WORLD.train_queries)

    def count(requests: list[tuple[str, str]], role: str) -> int:
        return sum(one == role for one, _ in requests)

    asked = [text for role, text in screened.transport.requests if role == "optimizer"]
    assert asked
    assert {re.search(r'"n": (\d+)', one)[1] for one in asked} == {"4"}  # type: ignore[index]
    assert len(asked) == count(without.transport.requests, "optimizer")
    levels = await screened.archive.levels()
    assert [len(level["children"]) for level in levels] == [1, 2, 4, 4, 4]
    assert count(screened.transport.requests, "base") <= 2 + 4 * (1 + 3 * 2)


async def test_choice_is_kept_with_the_expansion_and_its_rewrites_are_the_children_best_first() -> None:
    recorder = Recorder(make_screen())
    archive = await search(fake_settings(**SIZE), screen=recorder)
    stored = {key: one for key, one in (await archive.get_all("expansions")).items() if "screening" in one}
    assert len(stored) == len(recorder.requests) == 1 + 3 * 2
    candidates = await archive.get_all("candidates")
    for expansion in stored.values():
        screening, children = expansion["screening"], expansion["children"]
        assert isinstance(screening, dict)
        assert isinstance(children, list)
        prompts = [candidates[str(one)]["prompt"] for one in children]
        kept, expected = screening["kept"], screening["expected"]
        assert isinstance(kept, list)
        assert isinstance(expected, list)
        request = next(one for one in recorder.requests if [one.rewrites[int(str(at))] for at in kept] == prompts)
        assert screening["num_proposed"] == len(request.rewrites) == len(expected) == 4
        assert screening["num_trials"] == len(request.trials)


async def test_screen_sees_training_queries_of_earlier_levels_alone() -> None:
    recorder = Recorder()
    archive = await search(fake_settings(**SIZE), screen=recorder)
    levels, candidates = await archive.levels(), await archive.get_all("candidates")
    text_by_id = {key: one["text"] for key, one in (await archive.get_all("queries")).items()}
    ids = {text: key for key, text in text_by_id.items()}
    levels_shown = set()
    for request in recorder.requests:
        (level,) = {candidates[one]["depth"] for one in candidates if candidates[one]["prompt"] == request.rewrites[-1]}
        assert isinstance(level, int)
        levels_shown.add(level)
        assert [one.text for one in request.queries] == [text_by_id[one] for one in levels[level]["query_ids"]]
        before = {
            (candidates[child["id"]]["prompt"], text_by_id[query_id])
            for one in levels[:level]
            for child in one["children"]
            for query_id in one["query_ids"]
        }
        # All of them, each once, the oldest first.
        assert {(one.prompt, one.query) for one in request.trials} == before
        assert len(request.trials) == len(before)
        assert request.trials[0].prompt == settings_prompt(candidates)
        assert not {one.query for one in request.trials} & set(WORLD.heldout_queries)
        assert {ids[one.query] for one in request.trials} <= set(await archive.query_order())
    assert levels_shown == {1, 2, 3, 4}


def settings_prompt(candidates: Any) -> str:
    return str(candidates["0"]["prompt"])


async def test_rewards_that_the_screen_sees_are_the_critics() -> None:
    recorder = Recorder()
    archive = await search(fake_settings(**SIZE), screen=recorder)
    rollouts = (await archive.get_all("rollouts")).values()
    candidates = await archive.get_all("candidates")
    queries = await archive.get_all("queries")
    known = {
        (candidates[str(one["candidate_id"])]["prompt"], queries[str(one["query_id"])]["text"]): one["reward"]
        for one in rollouts
    }
    for request in recorder.requests:
        assert all(known[one.prompt, one.query] == one.reward for one in request.trials)


async def test_unscored_responses_and_held_out_ones_are_no_trials() -> None:
    recorder = Recorder()
    world = World(seed=3, num_queries=41, num_heldout=5, missing_rate=0.3)
    run = await run_search(fake_settings(**SIZE), world, world.train_queries, screen=recorder)
    rollouts = (await run.archive.get_all("rollouts")).values()
    assert any(one["reward"] is None for one in rollouts)
    assert len(recorder.requests[-1].trials) < len(rollouts)
    assert all(1 <= one.reward <= 5 for request in recorder.requests for one in request.trials)


@pytest.mark.parametrize("num_written", [1, 2])
async def test_no_more_rewrites_than_are_run_are_not_screened(num_written: int) -> None:
    recorder, writer = Recorder(), Writer("Be brief.", "Be kind.", "Be exact.")
    writer._rewrites = writer._rewrites[:num_written]
    archive = await search(fake_settings(**SIZE), screen=recorder, rewriter=writer)
    assert recorder.requests == []
    assert all(set(one) == {"children"} for one in (await archive.get_all("expansions")).values())
    assert [len(level["children"]) for level in await archive.levels()][1] == num_written


async def test_rewrites_that_are_all_equal_are_one_prompt_and_the_search_goes_on() -> None:
    archive = await search(fake_settings(**SIZE), screen=make_screen(), rewriter=Writer(*["Be brief."] * 4))
    levels = await archive.levels()
    assert [len(level["children"]) for level in levels] == [1, 2, 2, 2, 2]
    assert all(len(level["beam"]) == 1 for level in levels)


async def test_without_proposals_a_given_screen_changes_nothing() -> None:
    recorder = Recorder()
    plain = fake_settings(**{**SIZE, "n_proposed": None})
    with_it = await run_search(plain, WORLD, WORLD.train_queries, screen=recorder)
    without = await run_search(plain, WORLD, WORLD.train_queries)
    assert recorder.requests == []
    assert with_it.context.fingerprints() == without.context.fingerprints()
    assert sorted(with_it.transport.requests) == sorted(without.transport.requests)
    for kind in ("expansions", "candidates", "rollouts", "levels", "calls", "run"):
        stored = [await one.archive.get_all(kind) for one in (with_it, without)]  # type: ignore[arg-type]
        assert drop_times(stored[0]) == drop_times(stored[1])
    assert "n_proposed" not in plain.fingerprint_fields()


def drop_times(records: Any) -> Any:
    return {
        key: {name: value for name, value in one.items() if "time" not in name and name != "duration_s"}
        for key, one in records.items()
    }


async def test_what_chooses_is_in_the_fingerprint() -> None:
    settings = fake_settings(**SIZE)

    def identify(screen: RewriteScreen) -> dict[str, str]:
        return oracle_context(settings, OracleTransport(Oracle(WORLD)), screen=screen).fingerprints()

    ours = identify(make_screen())
    assert identify(make_screen()) == ours
    assert identify(Recorder())["components"] != ours["components"]
    assert identify(RewardScreen(WordEmbeddings(), "other"))["components"] != ours["components"]


async def test_search_without_the_screen_that_it_wants_ends_before_the_first_call() -> None:
    transport = OracleTransport(Oracle(WORLD))
    with pytest.raises(SettingsError, match="nothing chooses among the rewrites"):
        await run_search(fake_settings(**SIZE), WORLD, WORLD.train_queries, transport=transport)
    assert transport.requests == []


async def test_choice_that_cannot_be_followed_stops_the_run_before_a_rewrite_is_run() -> None:
    class Greedy:
        async def choose(self, request: ScreenRequest) -> ScreenChoice:
            return ScreenChoice(tuple(range(len(request.rewrites))))

    transport = OracleTransport(Oracle(WORLD))
    with pytest.raises(ScreenError, match="expected 1 to 2 distinct places") as caught:
        await run_search(fake_settings(**SIZE), WORLD, WORLD.train_queries, transport=transport, screen=Greedy())
    assert caught.value.is_resumable
    assert sum(role == "base" for role, _ in transport.requests) == 2


async def go_on(
    context: RunContext, transport: OracleTransport, *, saver: Checkpointer, stop_at: int | None
) -> RunResult | None:
    """Run, or go on with, a search; return its result, or ``None`` where it was stopped after so many calls."""
    num_sent = len(transport.requests)

    def count(_: Request) -> None:
        nonlocal num_sent
        num_sent += 1
        if num_sent == stop_at:
            context.stop.request("killed")

    transport.before = count
    graph = build_graph(context.settings, checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": RECURSION_LIMIT}
    is_new = (await graph.aget_state(config)).created_at is None
    given: Any = {"queries": list(WORLD.train_queries)} if is_new else None
    try:
        output = await graph.ainvoke(given, config, context=context, durability="async")  # type: ignore[arg-type]
    except RunInterruptedError:
        return None
    return RunResult.model_validate(output["result"])


class Broken:
    """A search that is stopped after each of some numbers of calls, every time with new live objects."""

    def __init__(self, settings: Settings, store: BaseStore, saver: Checkpointer) -> None:
        self.settings, self.store, self.saver = settings, store, saver
        self.transport = OracleTransport(Oracle(WORLD))
        self.kept: set[tuple[str, ...]] = set()

    async def run(self, stops: Sequence[int]) -> RunResult:
        """Return the result."""
        for stop_at in (*stops, None):
            screen, decided = Recorder(make_screen()), await self._read_decided()
            context = oracle_context(self.settings, self.transport, store=self.store, screen=screen)
            result = await go_on(context, self.transport, saver=self.saver, stop_at=stop_at)
            # What is stored is not decided anew. A choice that was lost on its way is made again.
            assert not decided & set(screen.kept)
            self.kept |= set(screen.kept)
            if result is not None:
                return result
        raise AssertionError("it was stopped each time")

    async def _read_decided(self) -> set[tuple[str, ...]]:
        """Return what is stored by now as having been kept."""
        archive = Archive(self.store, "t")
        prompts = {key: str(one["prompt"]) for key, one in (await archive.get_all("candidates")).items()}
        stored = [one for one in (await archive.get_all("expansions")).values() if "screening" in one]
        return {tuple(prompts[str(one)] for one in cast(list[str], each["children"])) for each in stored}


async def open_place(kind: str, folder: Path, stack: AsyncExitStack) -> tuple[BaseStore, Checkpointer]:
    if kind == "memory":
        return InMemoryStore(), InMemorySaver()
    opened = await stack.enter_async_context(open_checkpoint(folder / "runs.sqlite"))
    return opened.store, opened.saver


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("stops", [range(4, 60, 7), range(9, 60, 13), (20,), (33, 34, 35)])
async def test_run_that_was_stopped_and_resumed_equals_an_unbroken_one(
    kind: str, stops: Sequence[int], tmp_path: Path
) -> None:
    settings = fake_settings(**{**SIZE, "depth": 4})
    unbroken = Broken(settings, InMemoryStore(), InMemorySaver())
    expected = await unbroken.run(())
    async with AsyncExitStack() as stack:
        broken = Broken(settings, *await open_place(kind, tmp_path, stack))
        result = await broken.run(stops)
        ours, theirs = Archive(broken.store, "t"), Archive(unbroken.store, "t")
        for records in ("expansions", "candidates", "levels"):
            assert await ours.get_all(records) == await theirs.get_all(records)  # type: ignore[arg-type]
    ignored = {"usage", "duration_s"}
    assert result.model_dump(exclude=ignored) == expected.model_dump(exclude=ignored)
    # No call is paid for twice, and no rewrites are chosen from in two ways.
    assert sorted(broken.transport.requests) == sorted(unbroken.transport.requests)
    assert broken.kept == unbroken.kept


async def test_run_goes_on_only_with_the_screen_that_it_began_with() -> None:
    transport, store, saver = OracleTransport(Oracle(WORLD)), InMemoryStore(), InMemorySaver()
    settings = fake_settings(**SIZE)
    context = oracle_context(settings, transport, store=store, screen=make_screen())
    assert await go_on(context, transport, saver=saver, stop_at=20) is None
    other = oracle_context(settings, transport, store=store, screen=RewardScreen(WordEmbeddings(), "other"))
    with pytest.raises(FingerprintMismatchError, match="other components"):
        await go_on(other, transport, saver=saver, stop_at=None)
