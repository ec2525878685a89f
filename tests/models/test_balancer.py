"""Which of several servers takes a request, and what happens to the calls of one that is lost."""

import asyncio
from collections import Counter

import pytest

from drpo_graph.errors import ModelCallError
from drpo_graph.models.balancer import Balancer, Replica
from drpo_graph.models.endpoint_gate import EndpointGate
from drpo_graph.models.prefix_cache import PrefixMemory, prefix_blocks
from drpo_graph.models.request import Reply, Request
from drpo_graph.prompts.library import Message
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Routing
from tests.support.fake_server import FakeServer, FaultPlan, Latency, ServerOptions
from tests.support.oracle import build_responder
from tests.support.roles import QUESTION, answer, failing, open_desk, parse_answer, script


class Unsent:
    """A transport for choices that are not carried out."""

    async def send(self, request: Request) -> Reply:
        """Fail the test."""
        raise AssertionError("nothing should be sent")


def open_balancer(num_replicas: int, routing: Routing = "prefix") -> Balancer:
    def replica(index: int) -> Replica:
        gate = EndpointGate(max_concurrency=64, requests_per_second=None)
        return Replica(f"r{index}", Unsent(), lambda: gate)

    return Balancer(tuple(replica(index) for index in range(num_replicas)), routing)


def ask(text: str, system: str = "") -> Request:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return Request([*messages, {"role": "user", "content": text}])


class Load:
    """Calls that are under way at a replica."""

    def __init__(self, replica: Replica, count: int) -> None:
        self._done = asyncio.Event()
        self._tasks = [asyncio.create_task(self._hold(replica)) for _ in range(count)]

    async def _hold(self, replica: Replica) -> None:
        async with replica.gate().slot():
            await self._done.wait()

    async def end(self) -> None:
        self._done.set()
        await asyncio.gather(*self._tasks)


async def test_requests_that_begin_alike_go_to_one_server() -> None:
    balancer = open_balancer(3)
    prompts = [f"Prompt number {index}. " * 40 for index in range(6)]
    homes: dict[str, set[str]] = {prompt: set() for prompt in prompts}
    for turn in range(20):
        for prompt in prompts:
            homes[prompt].add(balancer.choose(ask(f"query {turn}", prompt)).endpoint)
    assert {len(home) for home in homes.values()} == {1}
    assert len(set.union(*homes.values())) == 3


async def test_the_longest_common_beginning_wins() -> None:
    balancer = open_balancer(2)
    fixed = "The same instructions for every critique. " * 20
    first, second = balancer.choose(ask(f"{fixed}{'query one ' * 40}")), None
    load = Load(first, 8)
    await asyncio.sleep(0)
    second = balancer.choose(ask(f"{fixed}{'query two ' * 40}"))
    await load.end()
    assert second is not first
    assert balancer.choose(ask(f"{fixed}{'query one ' * 40} answer")) is first
    assert balancer.choose(ask(f"{fixed}{'query two ' * 40} answer")) is second


async def test_a_full_server_is_passed_over_whatever_it_holds() -> None:
    balancer = open_balancer(2)
    system = "A long system prompt. " * 40
    home = balancer.choose(ask("a", system))
    other = next(one for one in balancer.replicas if one is not home)
    loads = [Load(home, 4), Load(other, 3)]
    await asyncio.sleep(0)
    assert balancer.choose(ask("b", system)) is home
    loads.append(Load(home, 4))
    await asyncio.sleep(0)
    assert balancer.choose(ask("c", system)) is other
    for load in loads:
        await load.end()


@pytest.mark.parametrize("routing", ["least_loaded", "round_robin"])
async def test_other_routings_spread_evenly(routing: Routing) -> None:
    balancer = open_balancer(3, routing)
    counts = Counter(balancer.choose(ask("same", "same prompt " * 50)).endpoint for _ in range(30))
    assert set(counts.values()) == {10}


async def test_least_loaded_counts_what_waits_as_well() -> None:
    balancer = open_balancer(2, "least_loaded")
    load = Load(balancer.replicas[0], 70)
    await asyncio.sleep(0)
    assert balancer.replicas[0].gate().load == 70
    assert {balancer.choose(ask("x")).endpoint for _ in range(5)} == {"r1"}
    await load.end()


async def test_lost_server_is_left_out_then_tried_with_one_request() -> None:
    balancer = open_balancer(2)
    lost, other = balancer.replicas
    gate = lost.gate()
    gate.note_lost()
    gate.note_lost()
    assert {balancer.choose(ask("x")).endpoint for _ in range(5)} == {other.endpoint}
    first_return = gate.lost_until
    gate.lost_until = 0.0
    assert gate.is_up
    load = Load(lost, 1)
    await asyncio.sleep(0)
    assert not gate.is_up
    gate.note_lost()
    assert gate.lost_until > first_return
    await load.end()
    gate.note_success()
    assert gate.is_up


async def test_with_all_servers_lost_the_one_that_may_return_first_is_asked() -> None:
    balancer = open_balancer(3)
    for replica, when in zip(balancer.replicas, (3e9, 1e9, 2e9), strict=True):
        replica.gate().note_lost()
        replica.gate().lost_until = when
    assert balancer.choose(ask("x")).endpoint == "r1"


async def test_paused_server_is_passed_over() -> None:
    balancer = open_balancer(2, "least_loaded")
    balancer.replicas[0].gate().note_overload(pause_s=60)
    assert {balancer.choose(ask("x")).endpoint for _ in range(4)} == {"r1"}
    assert not balancer.has_other(balancer.replicas[1])
    assert balancer.has_other(balancer.replicas[0])


def test_prefix_memory_forgets_what_was_used_longest_ago() -> None:
    memory = PrefixMemory(max_blocks=4)
    old, new = (prefix_blocks([{"role": "user", "content": text * 300}]) for text in "ab")
    assert len(old) == len(new) == 2
    memory.remember(old)
    memory.remember(new)
    memory.remember(old)
    memory.remember(prefix_blocks([{"role": "user", "content": "c" * 300}]))
    assert memory.count_shared(old) == 2
    assert memory.count_shared(new) == 0
    memory.forget()
    assert memory.count_shared(old) == 0


def test_blocks_depend_on_all_that_comes_before() -> None:
    system: Message = {"role": "system", "content": "s" * 1000}
    one, two = ([system, {"role": "user", "content": text * 400}] for text in "ab")
    shared = sum(a == b for a, b in zip(prefix_blocks(one), prefix_blocks(two), strict=True))
    assert shared == 1000 // 128
    assert prefix_blocks([{"role": "user", "content": "s" * 1000}])[0] != prefix_blocks([system])[0]


async def test_calls_of_a_lost_server_go_to_the_other_at_once() -> None:
    responder = build_responder(seed=3)
    async with FakeServer(responder) as stays:
        goes = FakeServer(responder, ServerOptions(latency=Latency(60.0)))
        await goes.__aenter__()
        desk = await open_desk("", role={"base_url": [stays.base_url, goes.base_url]}, routing="round_robin")
        work = [
            asyncio.create_task(desk.models.base.respond([{"role": "user", "content": f"Question {index}"}]))
            for index in range(16)
        ]
        while len(goes.log) < 8:
            await asyncio.sleep(0.01)
        await goes.__aexit__()
        samples = await asyncio.gather(*work)
        assert all(sample.value for sample in samples)
        assert {retry.kind for retry in desk.retries} == {"connection"}
        assert {retry.wait_s for retry in desk.retries} == {0.0}
        assert len(desk.retries) == 8
        assert len(stays.finished) == 16
        # What comes later finds the way alone.
        await desk.models.base.respond([{"role": "user", "content": "Later"}])
        assert len(desk.retries) == 8


async def test_a_server_that_comes_back_is_used_again() -> None:
    responder = build_responder(seed=3)
    async with FakeServer(responder) as stays:
        async with FakeServer(responder) as first:
            urls, port = [stays.base_url, first.base_url], int(first.base_url.split(":")[2].split("/")[0])
        desk = await open_desk("", role={"base_url": urls}, routing="round_robin")
        gate = desk.models.base.channel.client.replicas[1].gate()
        for index in range(4):
            await desk.models.base.respond([{"role": "user", "content": f"Early {index}"}])
        assert not gate.is_up
        async with FakeServer(responder, ServerOptions(port=port)) as back:
            gate.lost_until = 0.0
            for index in range(6):
                await desk.models.base.respond([{"role": "user", "content": f"Late {index}"}])
            assert len(back.finished) == 3
        assert len(desk.retries) == 1


async def test_overloaded_server_is_spared_while_the_other_works() -> None:
    responder = build_responder(seed=3)
    busy = FaultPlan(rate=1.0, kinds=("429_retry_after",), max_per_request=100, retry_after_s=60.0)
    async with FakeServer(responder) as free, FakeServer(responder, ServerOptions(faults=busy)) as full:
        desk = await open_desk("", role={"base_url": [full.base_url, free.base_url]}, routing="round_robin")
        for index in range(6):
            assert (await desk.models.base.respond([{"role": "user", "content": f"Q {index}"}])).value
        assert len(full.finished) == 1
        assert [(retry.kind, retry.wait_s) for retry in desk.retries] == [("http_429", 0.0)]


async def test_one_unreachable_server_does_not_hinder_the_start_all_do() -> None:
    async with FakeServer(build_responder(seed=3)) as server:
        gone = "http://127.0.0.1:9/v1"
        desk = await open_desk("", role={"base_url": [gone, server.base_url]})
        assert (await desk.models.base.respond([{"role": "user", "content": "Hi"}])).value
    desk = await open_desk("", role={"base_url": ["http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1"]})
    with pytest.raises(ModelCallError, match=r"cannot be reached after 3 tries"):
        await desk.models.base.respond([{"role": "user", "content": "Hi"}])


async def test_a_wrong_key_at_one_server_names_that_server() -> None:
    async with (
        FakeServer(build_responder(seed=3)) as free,
        FakeServer(build_responder(seed=3), ServerOptions(api_key="other")) as locked,
    ):
        desk = await open_desk("", role={"base_url": [locked.base_url, free.base_url]}, routing="round_robin")
        with pytest.raises(ModelCallError, match=locked.base_url):
            await desk.models.base.respond([{"role": "user", "content": "Hi"}])


async def test_failing_request_is_given_up_on_not_the_servers() -> None:
    says = script(*[failing(500)] * 3, answer(4))
    async with FakeServer(says) as one, FakeServer(says) as two:
        desk = await open_desk("", role={"base_url": [one.base_url, two.base_url]}, max_retries=2, max_reply_attempts=1)
        (sample,) = await desk.models.critic.ask(QUESTION, parse=parse_answer)
        assert sample.failure is not None
        assert sample.failure.kind == "unavailable"
        (sample,) = await desk.models.critic.ask([{"role": "user", "content": "Another"}], parse=parse_answer)
        assert sample.value == 4


def test_routing_and_addresses_are_no_part_of_what_a_run_is() -> None:
    before = build_settings({"model": "vllm:m"})
    after = build_settings({"model": "vllm:m", "base_url": ["http://a/v1", "http://b/v1"], "routing": "least_loaded"})
    assert before.fingerprint_fields() == after.fingerprint_fields()
