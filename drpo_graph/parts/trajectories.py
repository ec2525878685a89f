"""What an agent did on its way to an answer, as one bounded text for those who judge it or rewrite its prompt. Pure.

A label begins a line of its own; what tools and models wrote stands quoted below it, so that it cannot pose as a label.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from drpo_graph.safety.texts import clean_surrogates, shorten

MAX_TRAJECTORY_CHARS: Final = 8000
"""Of all steps before the answer: about 2000 tokens."""
_CHARS_PER_STEP = 200
"""A step that is shown has room for this at least, with its label."""
_MIN_CHARS = 3 * _CHARS_PER_STEP
"""A first step, a last one, and how many are left out between."""
_MAX_NAME = 64
_ANSWER, _NO_ANSWER = "[answer]", "[no answer]"
_CALL, _MALFORMED_CALL, _RESULT, _ERROR, _NOTE = "tool call", "malformed tool call", "tool result", "tool error", "text"

Messages: TypeAlias = Sequence[BaseMessage | Mapping[str, object]]
"""LangChain's messages, or dicts as OpenAI has them, also mixed."""


class _Step(NamedTuple):
    label: str
    name: str
    text: str

    def render(self, max_chars: int) -> str:
        """Return the label, and below it the text in quotes, cut in its middle."""
        head = f"[{self.label}] {shorten(self.name, _MAX_NAME)}".rstrip()
        return f"{head}\n{_cut_middle(_quote(self.text), max_chars - len(head) - 1)}"


class _Said(NamedTuple):
    """A message, whatever its form."""

    role: str
    text: str
    steps: tuple[_Step, ...] = ()
    """Calls of tools, or what came of one."""


def render_trajectory(messages: Messages, *, max_chars: int = MAX_TRAJECTORY_CHARS) -> str:
    """Return what follows the last message of the user as text: a labelled block per step, and last, whole, the answer.

    Without calls of tools it is the final text alone; without steps and text it is empty.

    Args:
        messages: A conversation, or only what an agent added to one.
        max_chars: Most characters of the steps, at least 600. Long texts are cut in their middle, the longest ones
            first; of too many steps those in the middle are left out. Both are told in their place.

    Raises:
        ValueError: a message is neither LangChain's nor a dict with a role, or the bound is too small.
    """
    if max_chars < _MIN_CHARS:
        raise ValueError(f"max_chars is {max_chars}: expected at least {_MIN_CHARS}")
    said = [_read(one) for one in messages]
    start = max((place + 1 for place, one in enumerate(said) if one.role == "user"), default=0)
    said = [one for one in said[start:] if one.role != "system"]
    # What stands beside calls of tools is a remark on the way.
    is_answered = bool(said) and said[-1].role == "assistant" and not said[-1].steps
    answer = said.pop().text if is_answered else ""
    if not any(one.steps for one in said):
        return clean_surrogates(answer)
    steps: list[_Step] = []
    for one in said:
        steps += [_Step(_NOTE, "", one.text)] if one.role == "assistant" and one.text.strip() else []
        steps += one.steps
    ending = f"{_ANSWER}\n{answer}" if answer.strip() else _NO_ANSWER
    return clean_surrogates("\n\n".join([*_render_steps(steps, max_chars), ending]))


def read_answer_of(response: str) -> str:
    """Return the final answer of a rendered trajectory, empty where there is none; any other text as it is."""
    labels = tuple(f"[{one}]" for one in (_CALL, _MALFORMED_CALL, _RESULT, _ERROR, _NOTE))
    if not response.startswith(labels):
        return response
    # The first one is ours: before it, all other lines are quoted.
    return response.partition(f"\n\n{_ANSWER}\n")[2]


def _render_steps(steps: Sequence[_Step], max_chars: int) -> list[str]:
    # With the empty line after each.
    lengths = [len(one.render(max_chars + len(one.text) * 3)) + 2 for one in steps]
    share = _fair_share(lengths, max_chars)
    if share >= _CHARS_PER_STEP or sum(lengths) <= max_chars:
        return [one.render(share - 2) for one in steps]
    # One place is for the note.
    num_shown = max_chars // _CHARS_PER_STEP - 1
    first, last = num_shown // 2, num_shown - num_shown // 2
    return [
        *_render_steps(steps[:first], first * _CHARS_PER_STEP),
        f"[{len(steps) - num_shown} steps left out]",
        *_render_steps(steps[len(steps) - last :], last * _CHARS_PER_STEP),
    ]


def _fair_share(lengths: Sequence[int], total: int) -> int:
    """Return the length at which the longest must be cut for all to fit into the total."""
    for place, length in enumerate(sorted(lengths)):
        share = total // (len(lengths) - place)
        if length > share:
            return share
        total -= length
    return max(lengths, default=total)


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines()) or "> (empty)"


def _cut_middle(quoted: str, max_chars: int) -> str:
    if len(quoted) <= max_chars:
        return quoted
    note = f"\n> ... ({len(quoted)} characters in all, cut here) ...\n> "
    kept = max(max_chars - len(note), 0)
    return f"{quoted[: kept - kept // 2]}{note}{quoted[len(quoted) - kept // 2 :]}"


def _read(message: BaseMessage | Mapping[str, object]) -> _Said:
    if isinstance(message, AIMessage):
        calls = [_Step(_CALL, one["name"], _as_json(one["args"])) for one in message.tool_calls]
        wrong = [_Step(_MALFORMED_CALL, one["name"] or "", one["args"] or "") for one in message.invalid_tool_calls]
        return _Said("assistant", str(message.text), (*calls, *wrong))
    if isinstance(message, ToolMessage):
        return _read_result(message.name, str(message.text), message.content, is_error=message.status == "error")
    if isinstance(message, HumanMessage | SystemMessage):
        return _Said("user" if isinstance(message, HumanMessage) else "system", "")
    if isinstance(message, BaseMessage):
        role = getattr(message, "role", message.type)
        return _read({"role": role, "content": message.content, "name": message.name})
    if not isinstance(message, Mapping):
        raise ValueError(f"expected a message, got {type(message).__name__}")
    return _read_dict(message)


def _read_dict(message: Mapping[str, object]) -> _Said:
    role, content = message.get("role"), message.get("content")
    name, text = message.get("name"), _text_of(content)
    if role in ("user", "human"):
        return _Said("user", "")
    if role in ("system", "developer"):
        return _Said("system", "")
    if role in ("tool", "function"):
        is_error = message.get("status") == "error" or message.get("is_error") is True
        return _read_result(name, text, content, is_error=is_error)
    if role not in ("assistant", "ai"):
        raise ValueError(f"expected a message with the role user, assistant, system or tool, got {role!a}")
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise ValueError(f"expected a list of tool_calls, got {type(calls).__name__}")
    return _Said("assistant", text, tuple(map(_read_call, calls)))


def _read_call(call: object) -> _Step:
    """Return a call in OpenAI's form, or in LangChain's."""
    if not isinstance(call, Mapping):
        raise ValueError(f"expected a tool call, got {type(call).__name__}")
    inner = call.get("function")
    fields = inner if isinstance(inner, Mapping) else call
    given = fields.get("arguments", fields.get("args"))
    name = str(fields.get("name") or "")
    if not isinstance(given, str):
        return _Step(_CALL, name, _as_json(given))
    try:
        return _Step(_CALL, name, _as_json(json.loads(given)))
    except ValueError:
        return _Step(_MALFORMED_CALL, name, given)


def _read_result(name: object, text: str, content: object, *, is_error: bool) -> _Said:
    shown = text or ("(content without text)" if content else "")
    return _Said("tool", "", (_Step(_ERROR if is_error else _RESULT, str(name or ""), shown),))


def _text_of(content: object) -> str:
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [one.get("text") if isinstance(one, Mapping) else one for one in content]
        return "".join(one for one in parts if isinstance(one, str))
    return "" if content is None else str(content)


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
