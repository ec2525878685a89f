"""The request in what a trace keeps as its input: a text, or the last user turn of a conversation in any usual form."""

from collections.abc import Mapping, Sequence
from typing import Final

from drpo_graph.data.conversations import MESSAGES_FIELDS, ROLES_BY_NAME, Exchange, read_exchange
from drpo_graph.data.rows import TEXT_FIELDS, check_string

_MAX_DEPTH: Final = 6
_HISTORY_FIELDS: Final = ("chat_history", "history")
_FIELDS: Final = (*MESSAGES_FIELDS, *TEXT_FIELDS, "inputs", "request", "user_input", "message", "content")
_ROLES: Final = {
    **ROLES_BY_NAME,
    "ai": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}


def find_request(value: object, *, faults: list[str]) -> Exchange | None:
    """Return the request in a value, with the turns before it; where there is none, why is added to ``faults``."""
    found = _find(value, _MAX_DEPTH)
    if found is None:
        faults.append("no request: expected a text or messages with a user turn")
        return None
    own: list[str] = []
    exchange = Exchange((), found, None) if isinstance(found, str) else read_exchange(found, faults=own)
    texts = [check_string(exchange.query, "the request", faults=own)] if not own else []
    for turn in exchange.history if texts else ():
        check_string(turn.content, "a turn before the request", faults=own, may_be_blank=True)
    faults += own
    return None if own else exchange


def _find(value: object, depth: int) -> str | Sequence[object] | None:
    """Return a text, or a conversation's messages."""
    if isinstance(value, str):
        return value if value.strip() else None
    if depth == 0:
        return None
    if isinstance(value, list):
        messages = _as_messages(value)
        # A batch of one, as a chat model is given.
        return messages or (_find(value[0], depth - 1) if len(value) == 1 else None)
    if not isinstance(value, Mapping):
        return None
    if messages := _as_messages([value]):
        return messages
    names = [name for name in _FIELDS if value.get(name)]
    # The one argument of a function that was traced.
    if not names and len(value) == 1:
        names = list(value)
    for name in names:
        found = _find(value[name], depth - 1)
        if isinstance(found, str) and (before := _find_history(value)):
            return [*before, {"role": "user", "content": found}]
        if found:
            return found
    return None


def _find_history(fields: Mapping[str, object]) -> Sequence[object]:
    """Return the messages that stand beside a text; those in no form that is known stay, to be told of."""
    given = next((fields[name] for name in _HISTORY_FIELDS if fields.get(name)), [])
    values = given if isinstance(given, list) else [given]
    messages = _as_messages(values)
    return values if messages is None else messages


def _as_messages(values: Sequence[object]) -> list[object] | None:
    """Return messages by role and content, without what tools said; ``None`` where one of the values is no message."""
    messages: list[object] = []
    for value in values:
        message = _as_message(value)
        if message is None:
            return None
        role, content = message
        if role == "tool":
            continue
        if isinstance(content, list):
            kinds = [part.get("type") if isinstance(part, Mapping) else "text" for part in content]
            if role == "user" and kinds and set(kinds) == {"tool_result"}:
                continue
            if role == "assistant":
                # Its calls of tools and its thinking are no part of what was said.
                content = [one for one, kind in zip(content, kinds, strict=True) if kind == "text"]
        if content or role == "user":
            messages.append({"role": role, "content": content})
    return messages


def _as_message(value: object) -> tuple[str, object] | None:
    """Return a message's role and content: OpenAI's form, LangChain's three, ShareGPT's, or a pair of the two."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value):
        role, content = value
    elif not isinstance(value, Mapping):
        return None
    elif "lc" in value and isinstance(fields := value.get("kwargs"), Mapping):
        names = value.get("id")
        role = fields.get("type") or (names[-1] if isinstance(names, list) and names else None)
        role, content = fields.get("role", role), fields.get("content")
    elif isinstance(fields := value.get("data"), Mapping) and "content" in fields:
        role, content = fields.get("role", value.get("type")), fields.get("content")
    elif "content" in value or "tool_calls" in value:
        role, content = value.get("role", value.get("type")), value.get("content")
    else:
        role, content = value.get("from"), value.get("value")
    if not isinstance(role, str):
        return None
    known = _ROLES.get(role.removesuffix("Chunk").removesuffix("Message").lower())
    return None if known is None else (known, content)
