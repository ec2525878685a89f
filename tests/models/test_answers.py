"""Where the answer stands in a reply, whichever way a model marks its thinking."""

import pytest

from drpo_graph.models.answers import is_cut, read_answer, settle_answer_start

DRAFT = 'Maybe {"a": 1}? No: </b>'
CLOSED = {
    "think": f"<think>{DRAFT}</think>",
    "think on lines": f"\n<think>\n{DRAFT}\n</think>\n\n",
    "upper case": f"<THINK>{DRAFT}</THINK>",
    "thinking": f"<thinking>{DRAFT}</thinking>",
    "reasoning": f"<reasoning>{DRAFT}</reasoning>",
    "brackets": f"[THINK]{DRAFT}[/THINK]",
    "empty": "<think>\n\n</think>\n\n",
    "twice": f"<think>{DRAFT}</think>\n<think>{DRAFT}</think>",
    "other names inside": "<think>As </reasoning> or [/THINK]?</think>",
    "no opening tag": f"{DRAFT}</think>",
    "no opening tag, on lines": f"{DRAFT}\n</thinking>\n\n",
    "no opening tag, in brackets": f"{DRAFT}[/THINK]",
    "channels": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>",
    "channels, with a form": f"<|channel|>analysis<|message|>{DRAFT}<|end|>"
    "<|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    "channels, no opening": f"{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>",
    "channels without their tokens": f"analysisWe {DRAFT}assistantfinal",
}
ANSWERS = ['{"a": 2}', '{"a": "Close with </think> and <|end|>."}', '```json\n{"a": "[/THINK]"}\n```']
MENTIONS = [
    "Close with `</think>`, always.",
    'The tag "</think>" ends it.',
    "Write\n```\n<think>\nso\n</think>\n```\nthen the answer.",
    "The form is <think>...</think> and then the answer.",
    "analysis of the market: prices rise.",
    'So be it: {"new_system_prompt": "First <think>, then </think>."}',
]


@pytest.mark.parametrize("is_structured", [True, False])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("thinking", CLOSED.values(), ids=CLOSED)
def test_answer_begins_where_the_thinking_ends(thinking: str, answer: str, is_structured: bool) -> None:
    text = thinking + answer
    said = read_answer(text, is_structured=is_structured)
    assert said.text.strip() == answer
    assert text[said.start :].startswith(said.text)
    assert said.is_unopened == (thinking in [one for name, one in CLOSED.items() if "no opening" in name])


@pytest.mark.parametrize("is_structured", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "<think>",
        '<think>Perhaps {"a": 1}',
        '<thinking>\nPerhaps {"a": 1}\n',
        '[THINK]{"a": 1}',
        '<reasoning>{"a": 1}</think>',
        '<|channel|>analysis<|message|>{"a": 1}',
        '<|channel|>analysis<|message|>{"a": 1}<|end|><|start|>assistant',
        '<|start|>assistant<|channel|>commentary<|message|>{"a": 1}<|end|>',
        'analysisWe need {"a": 1}',
    ],
)
def test_thinking_without_an_end_says_nothing(text: str, is_structured: bool) -> None:
    assert read_answer(text, is_structured=is_structured) == ("", len(text), True, False)


@pytest.mark.parametrize("text", MENTIONS)
def test_a_tag_that_is_only_mentioned_ends_nothing(text: str) -> None:
    assert read_answer(text).text == read_answer(f"<think>Hm.</think>{text}").text == text


def test_thinking_about_tags_gives_no_draft_for_an_answer() -> None:
    text = 'I end with </think>: {"a": 1} or so. </think> {"a": 2}'
    assert read_answer(text, is_structured=True).text.strip() == '{"a": 2}'
    assert read_answer(f"<think>{text}", is_structured=True).text.strip() == '{"a": 2}'
    assert "1" not in read_answer('Well. <think>Perhaps {"a": 1}', is_structured=True).text


def test_final_channel_ends_with_its_mark() -> None:
    assert read_answer("<|channel|>final<|message|>Yes.<|return|>").text == "Yes."


@pytest.mark.parametrize("answer", ["Rain is water.", "4 < 5 and <b>so</b> on: ```\n</think>\n```", "analysis"])
@pytest.mark.parametrize("thinking", ["", *CLOSED.values()], ids=["none", *CLOSED])
def test_a_growing_reply_shows_nothing_that_is_taken_back(thinking: str, answer: str) -> None:
    text, shown = thinking + answer, ""
    is_unopened = read_answer(text).is_unopened
    for length in range(len(text) + 1):
        said = settle_answer_start(text[:length])
        if is_unopened and not said.start:
            continue
        assert said.text.startswith(shown)
        shown = said.text
    assert (answer.startswith(shown.strip()) and shown.strip()) or answer == "analysis"


def test_every_provider_s_word_for_a_reply_that_was_cut() -> None:
    assert all(map(is_cut, ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "model_length"]))
    assert not any(map(is_cut, ["stop", "end_turn", "tool_calls", "", None]))


@pytest.mark.parametrize("part", ["</think>", "<think>", '{"a":', '"`</think>`', "<|channel|>final<|message|>{"])
def test_no_reply_is_read_for_long(part: str) -> None:
    few, many = part * 50, part * 2000
    for text in (few, many):
        assert len(read_answer(text, is_structured=True).text) <= len(text)
