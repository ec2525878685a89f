"""From a question to usable samples: n in one request, re-asking, repair, and the rungs that a server refuses."""

import asyncio
from typing import Any

import pytest

from drpo_graph.calls.client_setup import make_learned
from drpo_graph.calls.ladder import Sample, derive_seed
from drpo_graph.calls.roles import RoleModel
from drpo_graph.errors import ReplyError
from drpo_graph.models.capabilities import Capabilities
from tests.support.fake_server import FakeServer, Latency, Reply, ServerOptions
from tests.support.roles import (
    QUESTION,
    SCORE_SCHEMA,
    Desk,
    answer,
    by_content,
    failing,
    open_desk,
    parse_answer,
    script,
    serve,
)


async def ask(model: RoleModel, num_samples: int = 1, *, seed: int | None = 7, **options: Any) -> list[Sample[int]]:
    options.setdefault("schema", SCORE_SCHEMA)
    return await model.ask(QUESTION, parse=parse_answer, num_samples=num_samples, seed=seed, **options)


def values_of(samples: list[Sample[int]]) -> list[int | None]:
    return [sample.value for sample in samples]


def kinds_of(samples: list[Any]) -> list[str | None]:
    return [sample.failure.kind if sample.failure else None for sample in samples]


def mode_of(body: dict[str, Any]) -> str:
    if "tools" in body:
        return "tool"
    return str(body.get("response_format", {"type": "text"})["type"])


# Samples of one request


async def test_samples_come_from_one_request() -> None:
    says = script(answer(1, 2, 3))
    async with serve(says) as (_, desk):
        assert values_of(await ask(desk.models.optimizer, 3)) == [1, 2, 3]
    assert [body["n"] for body in says.bodies] == [3]


async def test_server_that_ignores_n_gets_single_calls_with_distinct_seeds() -> None:
    def respond(body: dict[str, Any]) -> Reply:
        return answer(body["seed"])

    async with serve(respond, ServerOptions(ignore_n=True, log_bodies=True)) as (server, desk):
        samples = await ask(desk.models.optimizer, 3)
        bodies = [entry["body"] for entry in server.finished]
    assert [body["n"] for body in bodies] == [3, 1, 1]
    assert sorted(body["seed"] for body in bodies) == sorted(value or 0 for value in values_of(samples))
    assert len(set(values_of(samples))) == 3


async def test_server_that_ignores_n_is_asked_singly_and_at_once_from_then_on() -> None:
    options = ServerOptions(ignore_n=True, log_bodies=True, latency=Latency(0.05))
    async with serve(by_content({}, answer(4)), options) as (server, desk):
        await ask(desk.models.optimizer, 3)
        num_before = len(server.finished)
        assert values_of(await ask(desk.models.optimizer, 3, seed=8)) == [4, 4, 4]
        later = server.finished[num_before:]
        assert server.max_in_flight == 3
    assert [entry["body"]["n"] for entry in later] == [1, 1, 1]
    assert len({str(entry["body"]["seed"]) for entry in later}) == 3


async def test_resumed_run_replays_samples_of_a_server_that_ignores_n() -> None:
    async with serve(by_content({}, answer(4)), ServerOptions(ignore_n=True)) as (server, desk):
        first = [await ask(desk.models.optimizer, 3), await ask(desk.models.optimizer, 3, seed=8)]
        num_requests = len(server.finished)
        again = await open_desk(server.base_url, store=desk.store)
        second = [await ask(again.models.optimizer, 3), await ask(again.models.optimizer, 3, seed=8)]
        assert second == first
        assert len(server.finished) == num_requests
    assert all(call.from_ledger for call in again.calls)
    assert len(again.calls) == num_requests


async def test_samples_got_before_the_server_ignored_n_are_replayed_whole() -> None:
    says = script(answer(1, 2), Reply(["{}", '{"score": 3}']))
    async with serve(says) as (server, desk):
        assert values_of(await ask(desk.models.optimizer, 2)) == [1, 2]
        await desk.models.optimizer.channel.learn(ignores_n=True)
        again = await open_desk(server.base_url, store=desk.store)
        assert again.models.optimizer.channel.learned.ignores_n
        assert values_of(await ask(again.models.optimizer, 2)) == [1, 2]
    assert len(says.bodies) == 1


# One bad sample never costs the others


async def test_only_the_unparsable_sample_is_asked_for_again() -> None:
    says = script(Reply(['{"score": 1}', "no idea", '{"score": 3}']), answer(2))
    async with serve(says) as (_, desk):
        samples = await ask(desk.models.optimizer, 3)
    assert values_of(samples) == [1, 2, 3]
    assert kinds_of(samples) == [None, None, None]
    assert [body["n"] for body in says.bodies] == [3, 1]
    assert says.bodies[0]["seed"] != says.bodies[1]["seed"]
    assert says.bodies[0]["messages"] == says.bodies[1]["messages"]


async def test_unparsable_replies_are_asked_for_again_then_repaired_then_reported() -> None:
    says = script(Reply(["one"]), Reply(["two"]), *[Reply(["three"])] * 2)
    async with serve(says) as (_, desk):
        samples = await ask(desk.models.optimizer, 2)
    assert values_of(samples) == [None, None]
    assert kinds_of(samples) == ["unparsable", "unparsable"]
    first, second, *repairs = says.bodies
    assert first == second
    assert len(repairs) == 2
    for repair in repairs:
        asked, given, request = repair["messages"]
        assert asked == first["messages"][0]
        assert given == {"role": "assistant", "content": "two"}
        assert "expected a JSON object, got 'two'" in request["content"]
        assert repair["n"] == 1
    assert repairs[0]["seed"] != repairs[1]["seed"]


async def test_repaired_reply_counts_as_a_sample() -> None:
    says = script(Reply(["one"]), Reply(["two"]), answer(5))
    async with serve(says) as (_, desk):
        (sample,) = await ask(desk.models.critic)
    assert sample.value == 5
    assert sample.key == desk.calls[-1].key


async def test_published_search_asks_once_and_repairs_nothing() -> None:
    says = script(Reply(["one"]))
    async with serve(says, compat="drpo") as (_, desk):
        samples = await ask(desk.models.critic)
    assert kinds_of(samples) == ["unparsable"]
    assert mode_of(says.bodies[0]) == "text"


async def test_reply_without_choices_is_empty() -> None:
    says = script(*[Reply()] * 2)
    async with serve(says, role={"reply_mode": "text"}) as (_, desk):
        assert kinds_of(await ask(desk.models.critic)) == ["empty"]
    assert len(says.bodies) == 2


# Truncated, refused, empty


@pytest.mark.parametrize("text", ['{"score": ', ""])
async def test_truncated_reply_is_asked_for_again_with_twice_the_tokens(text: str) -> None:
    says = script(Reply([text], finish_reasons=["length"]), answer(4))
    async with serve(says, role={"max_tokens": 100}) as (_, desk):
        assert values_of(await ask(desk.models.critic)) == [4]
    assert [body["max_completion_tokens"] for body in says.bodies] == [100, 200]


async def test_reply_truncated_to_the_end_says_so() -> None:
    says = script(*[Reply(['{"score": '], finish_reasons=["length"])] * 3)
    async with serve(says) as (_, desk):
        assert kinds_of(await ask(desk.models.critic)) == ["truncated"]
    assert len(says.bodies) == 3


async def test_truncated_reply_stays_truncated_where_more_tokens_are_refused() -> None:
    says = script(
        answer(1), Reply(['{"score": '], finish_reasons=["length"]), failing(400, "maximum context length is 9 tokens")
    )
    async with serve(says) as (_, desk):
        await ask(desk.models.critic, seed=1)
        assert kinds_of(await ask(desk.models.critic, seed=2)) == ["truncated"]


@pytest.mark.parametrize(
    "refusal",
    [Reply(refusals=["I will not."]), Reply(["I will"], finish_reasons=["content_filter"])],
    ids=["refusal", "content_filter"],
)
async def test_refusal_is_no_score_but_it_is_a_response(refusal: Reply) -> None:
    async with serve(script(refusal, refusal, refusal)) as (_, desk):
        samples = await ask(desk.models.critic)
        response = await desk.models.base.respond(QUESTION)
    assert kinds_of(samples) == ["refused"]
    assert response.value in ("I will not.", "I will")
    assert response.failure is None


@pytest.mark.parametrize("accepts_empty", [True, False])
async def test_response_that_a_filter_kept_back_is_none_not_even_an_empty_one(accepts_empty: bool) -> None:
    kept_back = Reply([""], finish_reasons=["content_filter"])
    async with serve(script(*[kept_back] * 4)) as (_, desk):
        response = await desk.models.base.respond(QUESTION, accepts_empty=accepts_empty)
    assert response.failure is not None
    assert response.failure.kind == "refused"


async def test_refusal_of_a_later_choice_is_seen() -> None:
    mixed = Reply(['{"score": 1}', ""], refusals=[None, "I will not."])
    async with serve(script(mixed, Reply(refusals=["No."]))) as (_, desk):
        assert kinds_of(await ask(desk.models.optimizer, 2)) == [None, "refused"]


async def test_request_that_a_filter_blocks_is_refused_and_not_repeated() -> None:
    says = script(answer(1), failing(400, "blocked by our content management policy"))
    async with serve(says) as (_, desk):
        await ask(desk.models.critic, seed=1)
        assert kinds_of(await ask(desk.models.critic, seed=2)) == ["refused"]
    assert len(says.bodies) == 2


async def test_empty_reply_is_asked_for_again() -> None:
    says = script(Reply([" "]), answer(4), Reply([""]), Reply(["\n"]))
    async with serve(says) as (_, desk):
        assert values_of(await ask(desk.models.critic)) == [4]
        response = await desk.models.base.respond(QUESTION)
    assert kinds_of([response]) == ["empty"]
    assert response.key is None
    assert len(says.bodies) == 4


async def test_truncated_response_is_a_response() -> None:
    async with serve(script(Reply([" Once upon "], finish_reasons=["length"]))) as (_, desk):
        assert (await desk.models.base.respond(QUESTION)).value == "Once upon"


# The ladder


def refuses(*modes: str) -> Any:
    """Return a responder that refuses these reply modes, and a list of the modes it was asked in."""
    asked: list[str] = []

    def respond(body: dict[str, Any]) -> Reply:
        asked.append(mode_of(body))
        if asked[-1] in modes:
            return failing(400, f"'{asked[-1]}' response_format or tools are not supported with this model")
        return answer(4)

    return respond, asked


@pytest.mark.parametrize(
    "refused",
    [(), ("json_schema",), ("json_schema", "tool"), ("json_schema", "tool", "json_object")],
    ids=["all", "tool", "json", "text"],
)
async def test_ladder_goes_down_to_what_the_server_accepts(refused: tuple[str, ...]) -> None:
    rungs = ["json_schema", "tool", "json_object", "text"]
    respond, asked = refuses(*refused)
    async with serve(respond) as (_, desk):
        assert values_of(await ask(desk.models.critic)) == [4]
        assert asked == rungs[: len(refused) + 1]
        assert values_of(await ask(desk.models.critic, seed=8)) == [4]
    # What was refused is not tried again.
    assert asked[len(refused) + 1 :] == [rungs[len(refused)]]


async def test_resumed_run_remembers_the_rung_and_replays_without_a_request() -> None:
    respond, asked = refuses("json_schema", "tool")
    async with serve(respond) as (server, desk):
        await ask(desk.models.critic)
        again = await open_desk(server.base_url, store=desk.store)
        num_requests = len(asked)
        assert values_of(await ask(again.models.critic)) == [4]
        assert len(asked) == num_requests
        await ask(again.models.critic, seed=8)
    assert asked[num_requests:] == ["json_object"]


async def test_reply_got_before_its_rung_was_refused_is_replayed() -> None:
    rejects_now = False

    def respond(body: dict[str, Any]) -> Reply:
        return failing(400, "invalid json_schema") if rejects_now and "response_format" in body else answer(4)

    async with serve(respond) as (server, desk):
        await ask(desk.models.critic, seed=1)
        rejects_now = True
        await ask(desk.models.critic, seed=2)
        num_requests = len(server.finished)
        again = await open_desk(server.base_url, store=desk.store)
        assert again.models.critic.channel.learned.rung == 1
        for seed in (1, 2):
            assert values_of(await ask(again.models.critic, seed=seed)) == [4]
        assert len(server.finished) == num_requests


async def test_schema_that_openai_rejects_is_no_context_overflow() -> None:
    message = "Invalid schema for response_format 'score': In context=(), 'additionalProperties' is required"
    says = script(failing(400, message), answer(4))
    async with serve(says) as (_, desk):
        assert values_of(await ask(desk.models.critic)) == [4]
    assert [mode_of(body) for body in says.bodies] == ["json_schema", "tool"]


async def test_equal_requests_in_flight_climb_together() -> None:
    respond, asked = refuses("json_schema", "tool")
    async with serve(respond) as (_, desk):
        found = await asyncio.gather(*(ask(desk.models.critic) for _ in range(5)))
    assert [values_of(samples) for samples in found] == [[4]] * 5
    assert asked == ["json_schema", "tool", "json_object"]


async def test_tries_that_failed_before_the_server_refused_a_rung_are_counted() -> None:
    says = script(failing(429), failing(429), failing(400, "response_format is not supported"), failing(429), answer(4))
    async with serve(says, retry_wait_s=0.01) as (_, desk):
        found = await asyncio.gather(*(ask(desk.models.critic) for _ in range(3)))
        noted = await desk.session.archive.get_all("failures")
        assert len(desk.retries) == 3
        assert desk.ledger.retries_by_kind == {"http_429": 1}
    assert [values_of(samples) for samples in found] == [[4]] * 3
    assert list(noted.values()) == [{"http_429": 2}]


@pytest.mark.parametrize(
    ("unusable", "asked"),
    [
        ((), ["json_schema"] * 6),
        # One damaged reply says nothing, nor do two that a good one parts.
        ((0, 2, 4), ["json_schema"] * 9),
        ((1, 2), ["json_schema"] * 3 + ["tool"] * 5),
        (range(99), ["json_schema"] * 2 + ["tool"] * 6),
    ],
)
async def test_calls_correct_a_probe_that_saw_nothing_of_a_rung(unusable: Any, asked: list[str]) -> None:
    modes: list[str] = []

    def respond(body: dict[str, Any]) -> Reply:
        modes.append(mode_of(body))
        return Reply(['{"score": ']) if modes[-1] == "json_schema" and len(modes) - 1 in unusable else answer(4)

    found = Capabilities(has_json_schema=False, unproven=("has_json_schema",))
    async with serve(respond) as (_, desk):
        learned = desk.models.critic.channel.learned
        learned.rung, learned.doubted = make_learned(None, found).rung, make_learned(None, found).doubted
        for number in range(6):
            assert values_of(await ask(desk.models.critic, seed=number)) == [4]
    assert modes == asked


@pytest.mark.parametrize(
    ("mode", "first"), [("auto", "json_schema"), ("tool", "tool"), ("json", "json_object"), ("text", "text")]
)
async def test_reply_mode_sets_the_first_rung(mode: str, first: str) -> None:
    respond, asked = refuses()
    async with serve(respond, role={"reply_mode": mode}) as (_, desk):
        await ask(desk.models.critic)
    assert asked == [first]


async def test_json_schema_is_sent_strict_and_under_its_name() -> None:
    says = script(answer(4))
    async with serve(says) as (_, desk):
        await ask(desk.models.critic)
    sent = says.bodies[0]["response_format"]["json_schema"]
    assert sent == {"name": "score", "schema": dict(SCORE_SCHEMA.schema), "strict": True}


async def test_question_without_schema_asks_for_text() -> None:
    says = script(answer(4))
    async with serve(says) as (_, desk):
        assert values_of(await ask(desk.models.critic, schema=None)) == [4]
    assert mode_of(says.bodies[0]) == "text"


@pytest.mark.parametrize("arguments", ['{"score": ', "[1, 2]", "null", "", '{"grade": 2}'])
async def test_unusable_tool_arguments_are_asked_for_again_and_repaired(arguments: str) -> None:
    bad = Reply([""], tool_arguments=[arguments])
    says = script(Reply([""], tool_arguments=['{"score": 1}', arguments]), bad, answer(4))
    async with serve(says, role={"reply_mode": "tool"}) as (_, desk):
        samples = await ask(desk.models.optimizer, 2)
    if arguments:
        assert values_of(samples) == [1, 4]
        assert says.bodies[2]["messages"][1] == {"role": "assistant", "content": arguments}
    else:
        assert kinds_of(samples) == [None, "empty"]


async def test_text_in_place_of_a_tool_call_is_read() -> None:
    async with serve(script(Reply(['Here: {"score": 2}'])), role={"reply_mode": "tool"}) as (_, desk):
        assert values_of(await ask(desk.models.critic)) == [2]


# The system role

SYSTEM_QUESTION = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"})


def roles_of(server: FakeServer) -> list[list[str]]:
    return [[str(message["role"]) for message in entry["body"]["messages"]] for entry in server.finished]


async def test_refused_system_role_is_merged_into_the_user_message() -> None:
    options = ServerOptions(reject_system_role=True, log_bodies=True)
    async with serve(by_content({"Be kind.\n\nHello": Reply(["Hi"])}, Reply(["?"])), options) as (server, desk):
        for _ in range(2):
            assert (await desk.models.base.respond(SYSTEM_QUESTION)).value == "Hi"
        again = await open_desk(server.base_url, store=desk.store)
        assert (await again.models.base.respond(SYSTEM_QUESTION)).value == "Hi"
        assert roles_of(server) == [["system", "user"], ["user"]]
        other = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"})
        await again.models.base.respond(other)
        assert roles_of(server)[2:] == [["user"]]


@pytest.mark.parametrize(("setting", "expected"), [("keep", ["system", "user"]), ("merge", ["user"])])
async def test_system_role_setting_is_obeyed(setting: str, expected: list[str]) -> None:
    role = {"system_role": setting}
    async with serve(script(Reply(["Hi"])), ServerOptions(log_bodies=True), role=role) as (server, desk):
        await desk.models.base.respond(SYSTEM_QUESTION)
        assert roles_of(server) == [expected]


async def test_kept_system_role_that_is_refused_is_rejected_at_once() -> None:
    options = ServerOptions(reject_system_role=True, log_bodies=True)
    async with serve(by_content({}, answer(1)), options, role={"system_role": "keep"}) as (server, desk):
        sample = await desk.models.base.respond(SYSTEM_QUESTION)
        assert len(server.finished) == 1
    assert kinds_of([sample]) == ["rejected"]


async def test_lone_system_message_is_merged_alone() -> None:
    says = script(Reply(["Hi"]))
    async with serve(says, role={"system_role": "merge"}) as (_, desk):
        await desk.models.base.respond(SYSTEM_QUESTION[:1])
    assert says.bodies[0]["messages"] == [{"role": "user", "content": "Be kind."}]


# Seeds and bugs


def test_seeds_are_derived_only_where_one_is_sent() -> None:
    assert derive_seed(None, "sample", 1) is None
    assert derive_seed(3, "sample", 1) == derive_seed(3, "sample", 1) != derive_seed(3, "sample", 2)


async def test_bug_in_a_parser_is_not_taken_for_a_bad_reply() -> None:
    def parse(text: str) -> int:
        return int({}[text])

    async with serve(script(answer(4))) as (_, desk):
        with pytest.raises(KeyError):
            await desk.models.critic.ask(QUESTION, parse=parse)


async def test_samples_say_which_call_they_came_from() -> None:
    def parse(text: str) -> str:
        if text == "b":
            raise ReplyError("b is bad")
        return text

    desk: Desk
    async with serve(script(Reply(["a", "b"]), Reply(["c"]))) as (_, desk):
        samples = await desk.models.optimizer.ask(QUESTION, parse=parse, num_samples=2)
    assert [sample.key for sample in samples] == [call.key for call in desk.calls]


async def test_half_a_character_in_a_reply_costs_one_sign() -> None:
    async with serve(lambda body: Reply(["a \ud83d b"])) as (_, desk):
        sample = await desk.models.base.respond(desk.models.base.response_format.render(system_prompt="p", query="q"))
    assert sample.value == "a \N{REPLACEMENT CHARACTER} b"
