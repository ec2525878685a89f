"""Where the answer stands in a reply: after the model's thinking, however that is marked. Pure.

Reasoning models think in tags (``<think>``, ``<reasoning>``, ``[THINK]``) or in channels (gpt-oss); servers that do not
read these hand them on as text, some without the opening tag, which their chat template wrote. What is asked of a role
is its answer: nothing that it only thought is ever taken for one.
"""

import json
import re
from typing import Final, NamedTuple

THINKING_PARTS: Final = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_content"})
"""What a message's content calls the parts that are no answer."""

_CUT_REASONS = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_NAMES = "think|thinking|thought|reasoning"
_OPENING = re.compile(rf"<\s*(?P<name>(?i:{_NAMES}))\s*>|\[(?P<upper>THINK)\]")
_CLOSING = re.compile(rf"<\s*/\s*(?P<name>(?i:{_NAMES}))\s*>|\[/(?P<upper>THINK)\]")
_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’"}

_CHANNEL = re.compile(r"\s*(?:<\|start\|>\s*assistant\s*)?<\|channel\|>")
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^\n]{0,80}?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:return|end|start|call|channel)\|>")
# The same where the server left out the special tokens.
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z])")
_BARE_FINAL = re.compile(r"assistant\s*final")

_BEGINNINGS = (*(f"<{name}>" for name in _NAMES.split("|")), "[think]", "<|channel|>", "<|start|>", "analysis")
_ENDS = ("<|return|>", "<|end|>", "<|start|>", "<|call|>", "<|channel|>")
_MAX_OBJECTS = 200
_decoder = json.JSONDecoder(strict=False)


class Said(NamedTuple):
    """What a reply says."""

    text: str
    """The answer as it stands in the reply; empty while the model thinks."""
    start: int
    """Where it begins there."""
    is_thinking: bool = False
    """Whether the reply ended before the thinking did."""
    is_unopened: bool = False
    """Whether thinking came before it that no tag had opened."""


def is_cut(finish_reason: str | None) -> bool:
    """Return whether the token limit ended a reply, whatever its provider calls that."""
    return (finish_reason or "").casefold() in _CUT_REASONS


def read_answer(text: str, *, is_structured: bool = False) -> Said:
    """Return the answer in a reply.

    A tag in a JSON string, in quotes or in a code block is only mentioned.

    Args:
        text: The reply.
        is_structured: Whether the answer is JSON. Whatever else stands there is none then, so that thinking which
            speaks of tags ends at the last one; in free text it ends at the first.
    """
    if (said := _read_channels(text)) is not None:
        return said
    start = 0
    while opening := _match_opening(text, start):
        closing = next((one for one in _CLOSING.finditer(text, opening.end()) if _is_pair(opening, one)), None)
        if closing is None:
            return Said("", len(text), is_thinking=True)
        start = closing.end()
    if start and not is_structured:
        return Said(text[start:], start)
    end = _find_end_of_unopened(text, start, is_structured=is_structured)
    if end is not None:
        return Said(text[end:], end, is_unopened=start == 0)
    again = _find_opening(text, start) if is_structured else None
    return Said(text[start : again.start()] if again else text[start:], start)


def settle_answer_start(text: str) -> Said:
    """Return what of the answer is certain while the model still writes: nothing before its thinking has ended."""
    said = read_answer(text)
    head = said.text.lstrip().casefold()
    if any(one.startswith(head) for one in _BEGINNINGS):
        return Said("", len(text), is_thinking=True)
    if said.is_unopened and text.count("{", 0, said.start) > text.count("}", 0, said.start):
        # The tag may stand in an object that is not whole yet.
        return Said("", len(text), is_thinking=True)
    # The beginning of what may end a channel.
    cuts = (length for end in _ENDS for length in range(1, len(end)) if said.text.endswith(end[:length]))
    held = max(cuts, default=0)
    return said._replace(text=said.text[: len(said.text) - held])


def _read_channels(text: str) -> Said | None:
    """Return the final channel of a reply in channels, or ``None`` where it has none."""
    for opening, ending in ((_CHANNEL, _FINAL), (_BARE_CHANNEL, _BARE_FINAL)):
        is_opened = opening.match(text) is not None
        if not is_opened and opening is _BARE_CHANNEL:
            continue
        final = ending.search(text)
        while final is not None and _is_in_object(text, final.start(), 0):
            final = ending.search(text, final.end())
        if final is not None:
            start = final.end()
            ends = () if opening is _BARE_CHANNEL else _CHANNEL_END.finditer(text, start)
            end = next((one.start() for one in ends if not _is_in_object(text, one.start(), start)), len(text))
            return Said(text[start:end], start, is_unopened=not is_opened)
        if is_opened:
            return Said("", len(text), is_thinking=True)
    return None


def _match_opening(text: str, start: int) -> re.Match[str] | None:
    return _OPENING.match(text, len(text) - len(text[start:].lstrip()))


def _find_opening(text: str, start: int) -> re.Match[str] | None:
    """Return the first opening tag that is more than mentioned."""
    return next((one for one in _OPENING.finditer(text, start) if not _is_mention(text, one, start)), None)


def _find_end_of_unopened(text: str, start: int, *, is_structured: bool) -> int | None:
    """Return where thinking ends that nothing has opened at its beginning, or ``None`` where there is none."""
    found = _CLOSING.finditer(text, start)
    for closing in reversed(list(found)) if is_structured else found:
        if _is_mention(text, closing, start):
            continue
        is_opened = any(_is_pair(one, closing) for one in _OPENING.finditer(text, start, closing.start()))
        # A pair in the middle of a line is what the text is about.
        if is_structured or not is_opened or text[closing.end() : closing.end() + 1] in ("\n", ""):
            return closing.end()
    return None


def _is_pair(opening: re.Match[str], closing: re.Match[str]) -> bool:
    names = [(one["name"] or one["upper"]).casefold() for one in (opening, closing)]
    return names[0] == names[1] and bool(opening["upper"]) == bool(closing["upper"])


def _is_mention(text: str, tag: re.Match[str], start: int) -> bool:
    before, after = text[max(0, tag.start() - 1) : tag.start()], text[tag.end() : tag.end() + 1]
    if before in _QUOTES and _QUOTES[before] == after:
        return True
    is_in_code = text.count("```", start, tag.start()) % 2 == 1
    return is_in_code or _is_in_object(text, tag.start(), start)


def _is_in_object(text: str, place: int, start: int) -> bool:
    """Return whether a place lies within a whole JSON object."""
    for _ in range(_MAX_OBJECTS):
        start = text.find("{", start, place)
        if start < 0:
            return False
        try:
            _, end = _decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        if end > place:
            return True
        start = end
    return False
