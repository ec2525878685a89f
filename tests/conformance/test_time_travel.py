"""A thread is taken up again from earlier checkpoints, changed by hand, and given something else to do."""

from collections.abc import Callable
from typing import Any

import pytest

from drpo_graph.errors import ModelCallError
from tests.conformance.conftest import Build, Failing
from tests.conformance.graphs import CASES, RECURSION, found_in, make_settings
from tests.conformance.places import MARKED_PAIRS, Place
from tests.support.command import finished_keys
from tests.support.fake_server import FakeServer

CONFIG: Any = {"configurable": {"thread_id": "t"}, **RECURSION}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pair", MARKED_PAIRS)
async def test_every_earlier_checkpoint_leads_to_the_same_without_a_call(
    pair: str, name: str, server: FakeServer, built: Build, make_place: Callable[[str], Place]
) -> None:
    settings, place = make_settings(server.base_url), make_place(pair)
    async with built(name, settings, place) as graph:
        found = found_in(await graph.ainvoke(CASES[name].given, CONFIG))
        history = [snapshot async for snapshot in graph.aget_state_history(CONFIG)]
    num_calls = len(finished_keys(server))
    assert history[0].next == ()
    assert history[-1].next == ("__start__",)
    for snapshot in history:
        async with built(name, settings, place) as graph:
            assert found_in(await graph.ainvoke(None, {**snapshot.config, **RECURSION})) == found
        assert len(finished_keys(server)) == num_calls


@pytest.mark.parametrize("name", CASES)
async def test_a_thread_that_has_ended_is_given_something_else(
    name: str, server: FakeServer, models: Failing, built: Build, make_place: Callable[[str], Place]
) -> None:
    settings, place = make_settings(server.base_url, depth=3), make_place("SQLite, no store")
    (field, given), *others = CASES[name].given.items()
    other = {field: given[1:], **dict(others)}
    async with built(name, settings, make_place("SQLite, no store")) as graph:
        expected = found_in(await graph.ainvoke(other, CONFIG))
    async with built(name, settings, place) as graph:
        await graph.ainvoke(CASES[name].given, CONFIG)
    before, models.num_left = len(finished_keys(server)), 5
    async with built(name, settings, place) as graph:
        with pytest.raises(ModelCallError):
            await graph.ainvoke(other, CONFIG)
    models.num_left = float("inf")
    async with built(name, settings, place) as graph:
        assert found_in(await graph.ainvoke(None, CONFIG)) == expected
    keys = finished_keys(server)[before:]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_parent])
async def test_a_parent_is_changed_by_hand(
    name: str, server: FakeServer, built: Build, make_place: Callable[[str], Place]
) -> None:
    settings, place = make_settings(server.base_url), make_place("SQLite, no store")
    given = CASES[name].given
    async with built(name, settings, make_place("SQLite, no store")) as graph:
        expected = found_in(await graph.ainvoke({"queries": given["queries"][1:]}, CONFIG))
    async with built(name, settings, place) as graph:
        await graph.ainvoke(given, CONFIG)
        await graph.aupdate_state(CONFIG, {"system_prompt": "Mine."})
        assert (await graph.aget_state(CONFIG)).values["system_prompt"] == "Mine."
        (before,) = [one async for one in graph.aget_state_history(CONFIG) if one.metadata["step"] == 0]
        branch = await graph.aupdate_state(before.config, {"queries": given["queries"][1:]})
    async with built(name, settings, place) as graph:
        assert found_in(await graph.ainvoke(None, {**branch, **RECURSION})) == expected


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_parent])
async def test_of_two_runs_of_one_start_the_one_that_followed_is_found(
    name: str, server: FakeServer, built: Build, make_place: Callable[[str], Place]
) -> None:
    settings, place, given = make_settings(server.base_url), make_place("SQLite, SQLite store"), CASES[name].given
    ids = []
    async with built(name, settings, place) as graph:
        for _ in range(3):
            ids.append((await graph.ainvoke(given, CONFIG))["result"]["thread_id"])
        begun = [one async for one in graph.aget_state_history(CONFIG) if one.next == ("__start__",)]
    assert len(begun) == 3
    found = []
    num_calls = len(finished_keys(server))
    for snapshot in (*reversed(begun), begun[-1]):
        async with built(name, settings, place) as graph:
            output = await graph.ainvoke(None, {**snapshot.config, **RECURSION})
        found.append(output["result"]["thread_id"])
    assert found == [*ids, ids[0]]
    assert len(finished_keys(server)) == num_calls
