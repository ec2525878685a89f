"""One sample of each role: what came, what was read, how it was asked for, and what to do where it is of no use."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from drpo_graph.records import ROLES, Role
from drpo_graph.runs.role_checks import RoleCheck, check_roles
from drpo_graph.settings.layers import build_settings
from tests.support.fake_server import FakeServer, Latency, Reply, Responder, ServerOptions
from tests.support.oracle import build_responder, role_of


def spoiling(replies: Mapping[Role, Reply]) -> Responder:
    """Return the world's responder, but for roles that answer something else."""
    world = build_responder(seed=3)

    def respond(body: dict[str, Any]) -> Reply:
        return replies.get(role_of(body["messages"])) or world(body)

    return respond


async def check(
    roles: Sequence[Role] = ROLES,
    *,
    spoiled: Mapping[Role, Reply] | None = None,
    options: ServerOptions | None = None,
    on_done: Callable[[RoleCheck], None] = lambda one: None,
    **values: Any,
) -> dict[Role, RoleCheck]:
    async with FakeServer(spoiling(spoiled or {}), options) as server:
        model = {"model": "openai:world", "base_url": server.base_url}
        settings = build_settings({**dict.fromkeys(ROLES, model), "max_retries": 0, **values})
        checks = await check_roles(settings, roles, on_done=on_done)
    return {one.role: one for one in checks}


async def test_every_role_of_a_good_model_is_usable() -> None:
    told: list[RoleCheck] = []
    checks = await check(on_done=told.append)
    assert list(checks) == list(ROLES)
    assert told == list(checks.values())
    assert {one.verdict for one in told} == {"usable"}
    assert all(one.is_usable and one.reading and one.model == "openai:world" for one in told)
    assert {one.role: one.rung for one in told} == {
        "base": "text",
        "metrics": "json_schema",
        "critic": "json_schema",
        "optimizer": "json_schema",
    }
    assert all((one.num_requests, one.usage.calls, one.endpoint) == (1, 1, "chat") for one in told)
    assert all(one.usage.prompt_tokens > 0 and one.usage.completion_tokens > 0 for one in told)
    assert checks["base"].reading == checks["base"].reply
    selected = checks["metrics"].reading.split(", ")
    assert [one.rsplit(" ", 1)[0] for one in checks["critic"].reading.split(", ")] == selected
    assert checks["optimizer"].reading in checks["optimizer"].reply.encode().decode("unicode_escape")


@pytest.mark.parametrize("role", ROLES)
async def test_one_role_can_be_checked_alone(role: Role) -> None:
    checks = await check([role])
    assert {name: one.is_usable for name, one in checks.items()} == {role: True}


@pytest.mark.parametrize(
    ("role", "reply", "words"),
    [
        ("base", Reply([""]), "response is empty. It says nothing: check its chat template"),
        (
            "metrics",
            Reply(["I like them all."]),
            "got 'I like them all.'. It does not give what is asked for: this role needs a",
        ),
        (
            "critic",
            Reply(['{"Clarity": {"sco'], finish_reasons=["length"]),
            "longer replies: --set critic.max_tokens=4096",
        ),
        ("critic", Reply(refusals=["No."], texts=[""]), "refused: 'No.'. It declines: give this role another model."),
        ("optimizer", Reply(["{}"]), "new_system_prompt"),
        ("optimizer", Reply(status=400, error_message="bad words"), "bad words. The server refuses the request"),
        ("critic", Reply(status=503, error_message="too busy"), "too busy. The server fails again and again"),
    ],
)
async def test_role_whose_reply_cannot_be_used_says_why_and_what_to_do(role: Role, reply: Reply, words: str) -> None:
    checks = await check(spoiled={role: reply})
    assert {name for name, one in checks.items() if not one.is_usable} == {role}
    bad = checks[role]
    assert words in bad.verdict
    assert "\n" not in bad.verdict
    assert bad.reading == ""
    assert bad.reply == ("" if reply.status != 200 else (reply.refusals or reply.texts)[0])


async def test_truncated_reply_may_be_bounded_instead() -> None:
    cut = Reply(["{"], finish_reasons=["length"])
    checks = await check(["optimizer"], spoiled={"optimizer": cut}, max_rationale_chars=200)
    assert checks["optimizer"].verdict.endswith(
        "Allow longer replies: --set optimizer.max_tokens=4096, or bound what it writes: --set max_prompt_chars=1500."
    )
    assert "bound" not in (await check(["base"], spoiled={"base": Reply([""])}))["base"].verdict


async def test_role_that_does_not_end_in_time_is_told_how_to() -> None:
    slow = ServerOptions(latency=Latency(30))
    checks = await check(["metrics", "critic"], options=slow, timeout_s=0.3, max_retries=2)
    assert [one.verdict for one in checks.values()] == [
        "no usable reply within 0.3 s. Give it more time: --set timeout_s=0.9, or bound what it writes: "
        "--set max_rationale_chars=300."
    ] * 2
    assert all(one.duration_s < 10 for one in checks.values())


async def test_rung_is_the_one_that_served() -> None:
    checks = await check(["critic"], options=ServerOptions(reject_response_format=True))
    assert (checks["critic"].rung, checks["critic"].is_usable) == ("tool", True)
    checks = await check(["critic"], options=ServerOptions(reject_response_format=True, reject_tools=True), probe=False)
    assert (checks["critic"].rung, checks["critic"].num_requests) == ("text", 4)


async def test_model_without_a_chat_template_is_checked_by_text_completions() -> None:
    def respond(body: dict[str, Any]) -> Reply:
        return Reply(["A hedgehog met a balloon."])

    async with FakeServer(respond, ServerOptions(reject_chat=True)) as server:
        settings = build_settings({"model": "vllm:base", "base_url": server.base_url})
        (one,) = await check_roles(settings, ["base"])
    assert (one.endpoint, one.reading, one.is_usable) == ("completions", "A hedgehog met a balloon.", True)


async def test_context_too_small_for_the_prompts_is_told_with_both_numbers() -> None:
    options = ServerOptions(server="vllm", tokenizes="vllm", max_model_len=400)
    checks = await check(options=options)
    assert checks["base"].is_usable
    verdict = checks["critic"].verdict
    assert "the model's context 400. Serve it with a longer context" in verdict
    assert checks["critic"].num_requests == 0
