"""What one reply proves: enforced, overlooked, or nothing, whatever a small or a thinking model makes of it."""

import pytest
from pydantic import JsonValue

from drpo_graph.models.failures import CallFailure, Remedy
from drpo_graph.models.probing.replies import (
    FUNCTION_NAME,
    ProbeChoice,
    ProbeReply,
    choose_stop,
    is_refused,
    judge_call,
    judge_enum,
    judge_json,
    judge_logprobs,
    judge_reproducible,
    judge_stop,
    judge_system_role,
)


def choice(text: str | None, *, is_cut: bool = False, **fields: JsonValue) -> ProbeChoice:
    reason = "length" if is_cut else "stop"
    return ProbeChoice.model_validate({"message": {"content": text}, "finish_reason": reason, **fields})


@pytest.mark.parametrize(
    ("text", "is_cut", "expected"),
    [
        ('{"answer":"zq7"}', False, True),
        ('{\n  "answer" : "zq7"\n}', True, True),
        (' {"answer": "zq7"}   \n\n\n\n', True, True),
        # A grammar that allows endless white space, and a small model that falls into it.
        ("{\n\n\n\n\n\n", True, True),
        ('{"answer": "zq', True, True),
        ('{"answer": "zq', False, None),
        ('{"answer": "blue"}', False, False),
        ('{"answer": "bl', True, False),
        ('{"answer": "zq7", "more": 1}', False, False),
        ('```json\n{"answer": "zq7"}\n```', False, False),
        ("Any answer you", True, False),
        ("zq7", False, False),
        ("", True, None),
        ("  \n", True, None),
        (None, True, None),
        ("<think>\nThe user wants", True, None),
        ('<think>Hm.</think>\n{"answer": "zq7"}', False, True),
        ("<think>Hm.</think> Blue.", False, False),
    ],
)
def test_schema_is_enforced_where_the_only_reply_came_or_began(text: str, is_cut: bool, expected: bool | None) -> None:
    assert judge_enum(choice(text, is_cut=is_cut)) is expected


@pytest.mark.parametrize(
    ("text", "is_cut", "expected"),
    [
        ('{"greeting": "hello"}', False, True),
        ('{"greeting": "hel', True, True),
        ('{"greeting": "hel', False, None),
        ("{", True, True),
        ("Hello!", False, False),
        ("Hello, and", True, False),
        ("[1, 2]", False, False),
        ("\n\n\n", True, None),
        ("", False, None),
    ],
)
def test_json_mode_gives_an_object_or_the_beginning_of_one(text: str, is_cut: bool, expected: bool | None) -> None:
    assert judge_json(choice(text, is_cut=is_cut)) is expected


@pytest.mark.parametrize(
    ("name", "arguments", "is_cut", "expected"),
    [
        (FUNCTION_NAME, '{"answer": "zq7"}', False, True),
        (FUNCTION_NAME, '{"answer": "blue"}', False, True),
        (FUNCTION_NAME, '{"answ', True, True),
        (FUNCTION_NAME, '{"answ', False, None),
        (FUNCTION_NAME, "zq7", False, False),
        (FUNCTION_NAME, "", True, None),
        (FUNCTION_NAME, None, False, False),
        ("another", '{"answer": "zq7"}', False, False),
    ],
)
def test_tool_is_forced_where_the_named_function_is_called(
    name: str, arguments: str | None, is_cut: bool, expected: bool | None
) -> None:
    call: JsonValue = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    made = choice(None, is_cut=is_cut, message={"content": None, "tool_calls": [call]})
    assert judge_call(made) is expected


def test_text_in_place_of_a_call_is_no_call_and_silence_proves_nothing() -> None:
    assert judge_call(choice("Blue.")) is False
    assert judge_call(choice("", is_cut=True)) is None


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ({"content": [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": -2.0}]}]}, True),
        ({"content": [{"token": "a", "logprob": -1.0, "top_logprobs": []}]}, False),
        ({"content": []}, False),
        ({"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0, "b": -2.0}]}, True),
        ({"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": None}, False),
        (None, False),
    ],
)
def test_logprobs_are_there_where_alternatives_are(logprobs: JsonValue, expected: bool) -> None:
    assert judge_logprobs(choice("a", logprobs=logprobs)) is expected
    assert judge_logprobs(choice("", logprobs=logprobs)) is (expected or None)


@pytest.mark.parametrize(("plain", "with_system", "expected"), [(40, 280, True), (64, 280, True), (40, 40, False)])
def test_system_prompt_was_read_where_it_made_the_prompt_longer(plain: int, with_system: int, expected: bool) -> None:
    replies = [ProbeReply.model_validate({"choices": [], "usage": {"prompt_tokens": n}}) for n in (plain, with_system)]
    assert judge_system_role(replies[1], plain=replies[0]) is expected
    assert judge_system_role(ProbeReply(choices=[]), plain=replies[0]) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("One,", True),
        ("One, ", True),
        ("", None),
        ("One, two,", True),
        ("One, two, three", False),
        # Another reply altogether, which may have ended by itself.
        ("1 2 3", None),
    ],
)
def test_reply_stops_where_it_was_told(said: str, expected: bool | None) -> None:
    plain = "One, two, three, four"
    assert choose_stop(plain) == "two,"
    assert judge_stop(said, plain=plain, stop="two,") is expected


def test_no_stop_is_chosen_in_a_reply_that_has_no_second_word() -> None:
    assert [choose_stop(text) for text in ("", "One.", "a a a", "  ")] == ["", "", "", ""]


@pytest.mark.parametrize(
    ("first", "second", "others", "expected"),
    [
        ("Zog 1", "Zog 1", ["Mip 2"], True),
        ("Zog 1", "Zog 1", ["Zog 1", "Mip 2"], True),
        ("Zog 1", "Mip 2", ["Zog 1"], False),
        # A model that says the same whatever is drawn.
        ("Zog 1", "Zog 1", ["Zog 1"], None),
        ("Zog 1", "Zog 1", [], None),
        ("", "", ["Zog 1"], None),
    ],
)
def test_seed_repeats_a_reply_only_where_replies_differ(
    first: str, second: str, others: list[str], expected: bool | None
) -> None:
    assert judge_reproducible(first, second, others=others) is expected


@pytest.mark.parametrize(
    ("kind", "message", "remedy", "expected"),
    [
        ("http_400", "Unsupported parameter: 'stop' is not supported with this model.", "reject", True),
        ("http_403", "You are not allowed to request logprobs from this model.", "stop", True),
        ("http_422", "n: extra fields not permitted", "reject", True),
        ("http_501", "", "climb", True),
        # llama.cpp says so with a 500.
        ("http_500", "tools param requires --jinja flag", "retry", True),
        ("http_500", "out of memory", "retry", False),
        ("http_429", "Rate limit reached.", "retry", False),
        ("http_401", "Incorrect API key provided.", "stop", False),
        ("timeout", "Request timed out.", "retry", False),
        ("malformed", "no completion", "retry", False),
        (
            "http_400",
            "Could not finish the message because max_tokens or model output limit was reached.",
            "reject",
            False,
        ),
        ("http_400", "This model's maximum context length is 128 tokens.", "reject", False),
        ("http_400", "Blocked by content_filter.", "refuse", False),
    ],
)
def test_refusal_is_what_a_server_will_say_again(kind: str, message: str, remedy: Remedy, expected: bool) -> None:
    failure = CallFailure(kind, remedy, message, is_overlong="context length" in message)
    assert is_refused(failure) is expected
