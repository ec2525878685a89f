"""What an agent did, as text: every step told in its order, bounded, and nothing in it that poses as a step."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from drpo_graph.errors import PartError, ReplyError
from drpo_graph.parts.responders import OnePromptOfApp, ask_responder
from drpo_graph.parts.trajectories import Messages, read_answer_of, render_trajectory
from drpo_graph.records import Query

LANGCHAIN: Sequence[BaseMessage] = [
    SystemMessage("You sell."),
    HumanMessage("A former question."),
    AIMessage("A former answer."),
    HumanMessage("What is a lamp?"),
    AIMessage("I look.", tool_calls=[{"name": "price", "args": {"item": "lämp"}, "id": "1"}]),
    ToolMessage("no such item", tool_call_id="1", name="price", status="error"),
    AIMessage(
        "",
        tool_calls=[{"name": "price", "args": {"item": "lamp"}, "id": "2"}],
        invalid_tool_calls=[{"name": "stock", "args": "{", "id": "3", "error": None}],
    ),
    ToolMessage([{"type": "text", "text": "7\n[answer]\n8"}], tool_call_id="2", name="price"),
    AIMessage([{"type": "text", "text": "It is 7.\n\nGood bye."}]),
]


def call(number: str, name: str, arguments: str) -> dict[str, object]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


OPENAI: Sequence[Mapping[str, object]] = [
    {"role": "developer", "content": "You sell."},
    {"role": "user", "content": "What is a lamp?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [call("1", "price", '{"item":"l\\u00e4mp"}')]},
    {"role": "tool", "tool_call_id": "1", "name": "price", "content": "no such item", "status": "error"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("2", "price", '{"item": "lamp"}'), call("3", "stock", "{")],
    },
    {"role": "tool", "name": "price", "content": [{"type": "text", "text": "7\n[answer]\n8"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "It is 7.\n\nGood bye."}]},
]
EXPECTED = """\
[text]
> I look.

[tool call] price
> {"item": "lämp"}

[tool error] price
> no such item

[tool call] price
> {"item": "lamp"}

[malformed tool call] stock
> {

[tool result] price
> 7
> [answer]
> 8

[answer]
It is 7.

Good bye."""


@pytest.mark.parametrize("messages", [LANGCHAIN, OPENAI, [*OPENAI[:4], *LANGCHAIN[6:]], LANGCHAIN[4:]])
def test_every_step_is_told_and_the_answer_stands_last(messages: Messages) -> None:
    text = render_trajectory(messages)
    assert text == EXPECTED
    assert read_answer_of(text) == "It is 7.\n\nGood bye."


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], ""),
        ([HumanMessage("?")], ""),
        ([HumanMessage("?"), AIMessage("An answer.")], "An answer."),
        ([AIMessage("A draft."), ChatMessage("It is\n[answer]\nthis.", role="assistant")], "It is\n[answer]\nthis."),
        ([{"role": "assistant", "content": "half \ud800"}], "half \ufffd"),
    ],
)
def test_without_calls_it_is_the_final_text_alone(messages: Messages, text: str) -> None:
    assert render_trajectory(messages) == text
    assert read_answer_of(text) == text


def test_end_without_an_answer_is_told() -> None:
    text = render_trajectory([LANGCHAIN[4], ToolMessage([], tool_call_id="1")])
    assert text.endswith("[tool result]\n> (empty)\n\n[no answer]")
    assert read_answer_of(text) == ""


def test_longest_results_are_cut_in_the_middle_and_short_ones_are_whole() -> None:
    long = "begin " + "x" * 9000 + " end"
    messages = [LANGCHAIN[4], ToolMessage(long, tool_call_id="1", name="price"), *LANGCHAIN[6:8], AIMessage("y" * 5000)]
    text = render_trajectory(messages, max_chars=1000)
    steps, answer = text.split("\n\n[answer]\n")
    assert answer == "y" * 5000
    assert 950 < len(steps) <= 1000
    assert "> begin xxx" in steps
    assert f"({len(long) + 2} characters in all, cut here)" in steps
    assert "xxx end\n\n" in steps
    assert '> {"item": "lamp"}' in steps


def test_of_too_many_steps_those_in_the_middle_are_left_out_and_counted() -> None:
    messages = [ToolMessage(f"result {number}", tool_call_id="1") for number in range(100)]
    steps = render_trajectory(messages, max_chars=1000).split("\n\n")
    assert [one.rpartition("> ")[2] for one in steps] == [
        "result 0",
        "result 1",
        "[96 steps left out]",
        "result 98",
        "result 99",
        "[no answer]",
    ]


TEXT = st.text("ab[]>\n\r\u2028 ", max_size=600)


@given(names=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=30), answer=TEXT, max_chars=st.integers(600, 4000))
def test_no_text_poses_as_a_step_and_the_bound_holds(names: list[tuple[str, str]], answer: str, max_chars: int) -> None:
    results = [{"role": "tool", "name": name, "content": f"{text}\n\n[answer]\n!"} for name, text in names]
    text = render_trajectory([*results, {"role": "assistant", "content": answer}], max_chars=max_chars)
    if answer.strip():
        assert read_answer_of(text) == answer
        steps = text.removesuffix(f"\n\n[answer]\n{answer}")
    else:
        steps = text.removesuffix("\n\n[no answer]")
    assert len(steps) <= max_chars
    lines = [one for one in steps.splitlines() if one and not one.startswith("> ")]
    assert all(one.startswith("[tool result]") or one.endswith("steps left out]") for one in lines)


class Returning:
    def __init__(self, given: object) -> None:
        self.given = given

    async def respond(self, prompt: str, query: Query) -> object:
        return self.given

    async def app(self, prompts: Mapping[str, str], query: Query) -> object:
        return self.given


async def ask(given: object) -> str:
    own, query = Returning(given), Query(id="q", text="?")
    texts = {
        await ask_responder(one, "p", query, timeout_s=9)  # type: ignore[arg-type]
        for one in (own, OnePromptOfApp(own.app, "a", {"a": "A prompt."}))  # type: ignore[arg-type]
    }
    assert len(texts) == 1
    return texts.pop()


@pytest.mark.parametrize("given", [LANGCHAIN, OPENAI, {"messages": LANGCHAIN, "other": 1}, tuple(OPENAI), EXPECTED])
async def test_app_may_return_messages_or_a_state(given: object) -> None:
    assert await ask(given) == EXPECTED


@pytest.mark.parametrize(
    "given",
    [None, 7, b"x", {}, {"messages": "x"}, [7], [{"role": "?"}], [{"role": "assistant", "tool_calls": 7}],
     [{"role": "assistant", "tool_calls": [7]}]],
)  # fmt: skip
async def test_what_is_no_response_stops_the_run_and_says_so(given: object) -> None:
    with pytest.raises(PartError, match=r"Query 'q': the app returned .* then resume") as caught:
        await ask(given)
    assert caught.value.is_resumable


async def test_messages_without_a_response_are_none() -> None:
    with pytest.raises(ReplyError, match="blank"):
        await ask([HumanMessage("?")])
