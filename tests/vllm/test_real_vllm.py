"""Against a real vLLM on the CPU: what fakes only claim."""

import json
from pathlib import Path

import pytest

from drpo_graph.models.capabilities import Address
from drpo_graph.models.http_json import Wire
from drpo_graph.models.probing.probe import probe_endpoint
from drpo_graph.models.request import ReplySchema
from drpo_graph.models.token_counts import count_tokens
from drpo_graph.parts.parsing import extract_json
from drpo_graph.prompts import load_prompts
from drpo_graph.records import MetricSelection, Query, RunResult, Usage
from tests.support.roles import Desk, open_desk
from tests.vllm.served import KEY, MODEL, Runs, VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

QUERY = Query(id="q", text="Name three things that float on water, and say why.")
MESSAGES = [{"role": "user", "content": "Say something about rivers."}]


async def open_run(server: VllmServer, **role: object) -> Desk:
    fields = {"model": f"vllm:{MODEL}", "max_tokens": 96, **role}
    return await open_desk(server.base_url, role=fields, probe=True)  # type: ignore[arg-type]


def total(result: RunResult) -> Usage:
    usage = Usage()
    for one in result.usage_by_role.values():
        usage = usage.plus(one)
    return usage


def share(usage: Usage) -> float:
    return usage.cached_tokens / usage.prompt_tokens


async def test_probe_finds_what_vllm_can(server: VllmServer) -> None:
    found = await probe_endpoint(Address(server.base_url, MODEL, KEY))
    assert found.server.startswith("vllm ")
    assert (found.has_chat, found.has_completions, found.has_system_role) == (True, True, True)
    assert (found.has_n, found.has_json_schema, found.has_json_mode, found.has_logprobs) == (True, True, True, True)
    assert (found.has_seed, found.has_stop, found.reports_cached_tokens) == (True, True, True)
    # This server was started without a parser for tool calls.
    assert found.has_tools is False
    assert (found.max_context, found.counts_tokens) == (8192, "vllm")


async def test_tokens_are_counted_as_the_server_counts_them(server: VllmServer) -> None:
    desk = await open_run(server)
    sample = await desk.models.base.respond(MESSAGES)  # type: ignore[arg-type]
    assert sample.value
    (call,) = desk.calls
    wire = Wire(Address(server.base_url, MODEL, KEY), timeout_s=30)
    assert await count_tokens(wire, MESSAGES, dialect="vllm") == call.usage.prompt_tokens  # type: ignore[arg-type]


async def test_critique_is_a_soft_score_from_one_schema_bound_reply(server: VllmServer) -> None:
    desk = await open_desk(
        server.base_url,
        role={"model": f"vllm:{MODEL}", "max_tokens": 256},
        probe=True,
        soft_scores=True,
        max_rationale_chars=80,
    )
    metrics = MetricSelection(metrics=load_prompts().metrics[:3])
    critique = await desk.context.components.critic.critique(
        QUERY, "Wood, because it is light.", selection=metrics, models=desk.models
    )
    assert [score.metric for score in critique.scores] == [metric.name for metric in metrics.metrics]
    for score in critique.scores:
        assert score.hard_score in (1, 2, 3, 4, 5)
        assert 1 < score.score < 5
    assert len(desk.calls) == 1


async def test_json_has_no_free_white_space_and_three_samples_come_at_once(server: VllmServer) -> None:
    desk = await open_run(server, temperature=1.0, max_tokens=160)
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "enum": [1, 2, 3]}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    samples = await desk.models.optimizer.ask(
        [{"role": "user", "content": "Describe a cat as JSON."}],
        parse=lambda text: (text, extract_json(text)),
        schema=ReplySchema("cat", schema),  # type: ignore[arg-type]
        num_samples=3,
        seed=7,
    )
    (call,) = desk.calls
    assert call.num_samples == 3
    texts = [sample.value[0] for sample in samples if sample.value]
    assert len(texts) == 3
    for text in texts:
        assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)


async def test_base_model_ends_at_its_stops_and_tells_what_was_cached(server: VllmServer) -> None:
    # At least a few words: this model, trained to chat, sometimes ends a flat text at once.
    desk = await open_run(server, endpoint="completions", max_tokens=200, extra_body={"min_tokens": 8})
    base = desk.models.base
    assert base.channel.client.prompt_format == "flat"
    for query in ("What is rain?", "What is snow?"):
        sample = await base.respond(base.response_format.render(system_prompt="Be brief. " * 30, query=query))
        assert sample.value
        assert "# Query" not in sample.value
        assert "# Answer" not in sample.value
    assert desk.calls[1].usage.cached_tokens > 0
    stopped = await open_run(server, endpoint="completions", stop=["7"], max_tokens=64)
    counting = [{"role": "user", "content": "1, 2, 3, 4, 5,"}]
    sample = await stopped.models.base.respond(counting)  # type: ignore[arg-type]
    assert sample.value
    assert "7" not in sample.value
    assert stopped.calls[0].usage.completion_tokens < 64


async def test_prompt_beyond_the_context_is_explained_and_not_sent(server: VllmServer) -> None:
    desk = await open_run(server)
    sample = await desk.models.base.respond([{"role": "user", "content": "river " * 9000}])
    assert sample.failure is not None
    assert sample.failure.kind == "overflow"
    assert "the model's context 8,192" in sample.failure.detail
    assert not desk.calls
    # The prompt fits and the reply would not: the reply is bounded.
    desk = await open_run(server, max_tokens=8192)
    stop = await desk.models.critic.ask([{"role": "user", "content": "Say: yes"}], parse=str)
    assert stop[0].value


def test_search_on_vllm_finds_most_of_its_prompts_in_the_cache(
    server: VllmServer, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    server.empty_cache()
    result = runs.run("whole", [server])
    usage = total(result)
    with capsys.disabled():
        print(f"\n2x3 search on one vLLM: {usage.calls} calls, {share(usage):.0%} of {usage.prompt_tokens} cached")
        print(runs.said)
    assert result.status == "done"
    assert share(usage) > 0.5
    rewrites = [event for event in runs.events("whole") if event.get("role") == "optimizer"]
    assert {event["num_samples"] for event in rewrites if event["type"] == "call_finished"} >= {3}


def test_server_killed_in_mid_run_and_restarted(server: VllmServer, runs: Runs) -> None:
    process = runs.begin("killed", [server])
    runs.wait_for_calls("killed", 9, process)
    server.kill()
    server.start()
    server.wait()
    # The run has waited for it.
    assert runs.finish(process) == 0, runs.said
    kinds = [event["type"] for event in runs.events("killed")]
    assert "endpoint_lost" in kinds
    assert "endpoint_back" in kinds
    calls = [event for event in runs.events("killed") if event["type"] == "call_finished"]
    paid = [event["key"] for event in calls if not event["from_ledger"]]
    assert len(paid) == len(set(paid))
    whole, killed = runs.result("whole"), runs.result("killed")
    assert killed.status == "done"
    assert killed.system_prompt == whole.system_prompt
    assert (killed.trace, killed.beam, killed.reward) == (whole.trace, whole.beam, whole.reward)
    assert killed.initial_reward == whole.initial_reward


def test_two_replicas_share_the_work_and_one_may_die(
    server: VllmServer, second_server: VllmServer, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [server, second_server]
    shares = {}
    for routing in ("round_robin", "prefix"):
        for one in both:
            one.empty_cache()
        usage = total(runs.run(f"two-{routing}", both, routing=routing, max_concurrency=8))
        shares[routing] = share(usage)
    with capsys.disabled():
        print(f"\ncached share on two vLLM: {', '.join(f'{name} {value:.0%}' for name, value in shares.items())}")
    assert shares["prefix"] > shares["round_robin"]
    process = runs.begin("bereaved", both, settings={"routing": "round_robin"})
    runs.wait_for_calls("bereaved", 8, process)
    second_server.kill()
    assert runs.finish(process) == 0, runs.said
    result = runs.result("bereaved")
    assert result.status == "done"
    # A server that is being killed closes connections, or says in its last moment that its engine is gone.
    known = {"connection", "http_500", *runs.result("two-round_robin").failures_by_kind}
    assert set(result.failures_by_kind) <= known
    assert Path(runs.folder / "bereaved" / "best_prompt.txt").read_text().strip() == result.system_prompt.strip()
