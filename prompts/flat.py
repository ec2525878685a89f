"""The flat format: headings in place of chat roles, for base models that continue a text (URIAL, arXiv 2312.01552)."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from drpo_graph.prompts.fencing import escape_headings
from drpo_graph.prompts.messages import Message

FLAT_STOPS: Final = ("\n# Query\n", "\n# Answer\n")
"""Where a base model has ended its answer and begins to invent the next exchange."""
REPLY_STOPS: Final = ("\n# Reply\n", "\n# The ", "\n# Metrics\n")
"""The same for a structured reply: the headings of our own requests. In JSON no line begins with one."""
REPLY_HEADING: Final = "# Reply"
MAX_STOPS: Final = 4
"""OpenAI takes no more in one request."""

_HEADINGS = ("# Query:", "# Answer:")
_HEADING = re.compile(r"^# (?:Query|Answer):?[ \t]*$", re.MULTILINE)
_OWN_HEADING = re.compile(r"\A# Answer:?[ \t]*\n")
# A fence that names a language belongs to the answer.
_FENCE = re.compile(r"```(?:text|markdown|md)?[ \t]*\n(?P<inside>.*?)(?P<end>\n```)?", re.DOTALL)

_FENCE_OPENING = re.compile(r"`{1,2}|```(?:[a-z]*|(?:text|markdown|md)?[ \t]*(?:\n.*)?)", re.DOTALL)


class Settled(NamedTuple):
    """What of a response will stand in it whatever the model still writes."""

    text: str
    is_ended: bool = False
    """Whether nothing that follows belongs to it."""


def merge_stops(own: Sequence[str], of_format: Sequence[str]) -> tuple[str, ...]:
    """Return a role's own stops, then as many of its format's as a request has room for."""
    return (*own, *[stop for stop in of_format if stop not in own][: max(0, MAX_STOPS - len(own))])


def clean_answer(text: str, *, is_cut: bool) -> str:
    """Return the answer in what a model made of a flat prompt; what stands inside the answer stays as it is.

    The answer ends at the next heading of the format, whether or not the server heeded the stops. The white space
    around it goes, and so does a bare code fence around all of it.

    Args:
        is_cut: Whether the token limit ended it: it may then end in the middle of a heading, or inside the fence.
    """
    answer = _OWN_HEADING.sub("", text)
    heading = _HEADING.search(answer)
    if heading:
        answer = answer[: heading.start()]
    elif is_cut:
        answer = _without_partial_stop(answer)
    return _without_fence(answer.strip(), is_cut=is_cut and heading is None).strip()


def settle_answer(text: str) -> Settled:
    """Return what :func:`clean_answer` will begin with, whatever follows the text.

    A line that may become a heading, the white space at the end and an answer that may stand inside a fence are held
    back.
    """
    answer = _OWN_HEADING.sub("", text)
    lines, _, last = answer.rpartition("\n")
    # At the end of the text "# Query" may still become "# Query language".
    if _HEADING.search(lines):
        return Settled(clean_answer(text, is_cut=False), is_ended=True)
    is_begun = any(heading.startswith(last.rstrip(" \t")) for heading in _HEADINGS)
    shown = (lines if is_begun else answer).strip()
    return Settled("" if _FENCE_OPENING.fullmatch(shown) else shown)


def join_turns(turns: Sequence[Message]) -> str:
    """Return exchanges as the flat template's query: a heading opens each turn but the first, whose heading it has.

    Args:
        turns: User and assistant in turn, the query that is to be answered last. A heading inside one is escaped.
    """
    headings = {"user": "# Query", "assistant": "# Answer"}
    opened = [f"{headings.get(turn['role'], '# Query')}\n{escape_headings(turn['content'])}" for turn in turns]
    return "\n\n".join(opened).removeprefix("# Query\n")


def join_messages(messages: Sequence[Message], *, is_structured: bool) -> str:
    """Return a conversation as one text for a base model to continue.

    Args:
        is_structured: Whether a reply of our form comes next; a heading announces it then.
    """
    texts = [f"{REPLY_HEADING}\n{one['content']}" if one["role"] == "assistant" else one["content"] for one in messages]
    prompt = "\n\n".join(texts)
    return f"{prompt.rstrip()}\n\n{REPLY_HEADING}\n" if is_structured else prompt


def _without_partial_stop(text: str) -> str:
    # From the stop's "#" on.
    beginnings = [stop[:length] for stop in FLAT_STOPS for length in range(2, len(stop))]
    return text.removesuffix(max((one for one in beginnings if text.endswith(one)), key=len, default=""))


def _without_fence(text: str, *, is_cut: bool) -> str:
    fence = _FENCE.fullmatch(text)
    if fence is None or "```" in fence["inside"] or (fence["end"] is None and not is_cut):
        return text
    return fence["inside"]
