"""Conversations as datasets hold them: the last user turn is the query, what stands before it the history."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from drpo_graph.records import Turn

MESSAGES_FIELDS: Final = ("messages", "conversations", "conversation")
"""Where a record's conversation may stand: OpenAI's and ShareGPT's names."""

_NAMES_BY_ROLE: Final[Mapping[Literal["user", "assistant"], tuple[str, ...]]] = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "chatgpt", "bot"),
}
ROLES_BY_NAME: Final = {name: role for role, names in _NAMES_BY_ROLE.items() for name in names}
_SYSTEM_NAMES: Final = ("system", "developer")


class Exchange(NamedTuple):
    """A conversation up to a query."""

    history: tuple[Turn, ...]
    """Turns of user and assistant before the query, oldest first. System messages are left out: the prompt that is
    optimised stands in their place."""
    query: str
    answer: str | None
    """What the assistant said to the query, where the conversation goes on."""


def find_messages(record: Mapping[str, object], text_fields: Sequence[str]) -> tuple[str, Sequence[object]] | None:
    """Return the name of the field that holds a record's conversation, and its messages; ``None`` where it has none."""
    if isinstance(record.get("query"), str):
        return None
    for name in (*MESSAGES_FIELDS, *text_fields):
        given = record.get(name)
        if given is None or isinstance(given, str):
            continue
        messages = as_list(given)
        if messages is not None and (name in MESSAGES_FIELDS or any(isinstance(one, Mapping) for one in messages)):
            return name, messages
    return None


def read_exchange(messages: Sequence[object], *, faults: list[str]) -> Exchange:
    """Return what a conversation comes to; what is wrong with it is added to ``faults``."""
    turns = read_turns(messages, faults=faults)
    last = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        if not faults:
            faults.append("no user turn, which would be the query")
        return Exchange((), "", None)
    answer = next((turn.content for turn in turns[last + 1 :]), None)
    return Exchange(tuple(turns[:last]), turns[last].content, answer)


def read_turns(messages: Sequence[object], *, faults: list[str]) -> list[Turn]:
    """Return the turns of user and assistant among messages; what cannot be read is added to ``faults``."""
    turns: list[Turn] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            faults.append(f"message {number}: expected an object, got {type(message).__name__}")
            continue
        given = message.get("role", message.get("from"))
        name = given.lower() if isinstance(given, str) else ""
        role, text = ROLES_BY_NAME.get(name), _text_of(message)
        if name in _SYSTEM_NAMES:
            continue
        if role is None:
            faults.append(f"message {number}: role {given!a} is none of user, assistant and system")
        elif text is None:
            faults.append(f"message {number}: expected text, found none or other content beside it")
        else:
            turns.append(Turn.model_construct(role=role, content=text))
    return turns


def as_list(value: object) -> Sequence[object] | None:
    """Return a list, a tuple, or an array as a table holds it; ``None`` for anything else."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return value if isinstance(value, list | tuple) else None


def _text_of(message: Mapping[str, object]) -> str | None:
    content = next((message[name] for name in ("content", "value", "text") if message.get(name) is not None), None)
    parts = as_list(content)
    if parts is None:
        return content if isinstance(content, str) else None
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return "".join(map(str, texts)) if texts and all(isinstance(one, str) for one in texts) else None
