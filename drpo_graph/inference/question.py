"""One question to an aligned model: all that decides the request, but for the form that the model needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    MessageLikeRepresentation,
    SystemMessage,
    convert_to_messages,
)
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata

from drpo_graph.errors import UsageError
from drpo_graph.inference.client import Answer
from drpo_graph.inference.prompt_choice import ChosenPrompt
from drpo_graph.models.answers import THINKING_PARTS, read_answer
from drpo_graph.prompts.library import Message, ResponseFormat
from drpo_graph.records import ICLExample
from drpo_graph.settings.settings import RoleSettings


class Conversation(NamedTuple):
    """A conversation that the model is to go on with."""

    system: str
    """What the application's own system messages say."""
    history: tuple[Message, ...]
    """The exchanges so far, oldest first."""
    query: str


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, with what around it, and how the response is sampled."""

    role: RoleSettings
    prompt: ChosenPrompt
    conversation: Conversation
    examples: Sequence[ICLExample]

    def render(self, form: ResponseFormat) -> list[Message]:
        """Return the request, as the search makes it."""
        own, history, query = self.conversation
        system_prompt = "\n\n".join(part for part in (self.prompt.text, own) if part)
        return form.render(system_prompt=system_prompt, query=query, examples=self.examples, history=history)

    def describe(self, answer: Answer, *, model: str) -> dict[str, Any]:
        """Return what the response's message tells beside its text: what it cost, and where it comes from."""
        usage, choice = answer.usage, self.prompt.choice
        # Without the prompt's text, which the histories of agents would keep with every message.
        chosen = {} if choice is None else {"system_prompt_choice": choice.model_dump(mode="json", exclude={"prompt"})}
        return {
            "usage_metadata": UsageMetadata(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.prompt_tokens + usage.completion_tokens,
                input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
                output_token_details=OutputTokenDetails(reasoning=usage.reasoning_tokens),
            ),
            "response_metadata": {
                "model_name": model,
                "finish_reason": answer.finish_reason,
                "system_prompt_source": self.prompt.source,
                **chosen,
                "icl_queries": [example.query for example in self.examples],
            },
        }


def read_fields(given: Mapping[str, object]) -> list[BaseMessage]:
    """Return the messages in a dict: its ``history`` and its ``query``, or its ``messages``.

    Raises:
        UsageError: it has neither, or something else beside a query.
    """
    if "messages" in given:
        # A graph's state: its other keys are not ours.
        return _to_messages(given["messages"], "messages")
    if "query" not in given or set(given) - {"query", "history"}:
        found = ", ".join(map(repr, given)) or "nothing"
        raise UsageError(f"The input has the keys {found}: expected 'query' (and 'history'), or 'messages'.")
    return [*_to_messages(given.get("history") or [], "history"), *_to_messages(given["query"], "query")]


def read_conversation(messages: Sequence[BaseMessage]) -> Conversation:
    """Return the conversation in messages, of which the last is the query.

    Raises:
        UsageError: the last one is not the user's, or one is neither text of user, assistant nor system.
    """
    if not messages or not isinstance(messages[-1], HumanMessage):
        last = f"is of type {messages[-1].type!r}" if messages else "is missing"
        raise UsageError(f"The last message {last}: expected the user's query.")
    system = [_text_of(one) for one in messages if isinstance(one, SystemMessage)]
    turns = [_as_turn(one) for one in messages[:-1] if not isinstance(one, SystemMessage)]
    return Conversation("\n\n".join(system), tuple(turns), _text_of(messages[-1]))


def _as_turn(message: BaseMessage) -> Message:
    if isinstance(message, HumanMessage):
        return Message(role="user", content=_text_of(message))
    if isinstance(message, AIMessage):
        # Without its thinking, as chat templates show former turns.
        return Message(role="assistant", content=read_answer(_text_of(message)).text.strip())
    raise UsageError(f"A message of type {message.type!r}: expected texts of user and assistant.")


def _text_of(message: BaseMessage) -> str:
    blocks = message.content if isinstance(message.content, list) else []
    kinds = {str(block.get("type")) for block in blocks if not isinstance(block, str)}
    kinds -= {"text", *(THINKING_PARTS if isinstance(message, AIMessage) else ())}
    if kinds:
        raise UsageError(f"A message has content of type {', '.join(sorted(kinds))}: expected text.")
    return str(message.text)


def _to_messages(given: object, key: str) -> list[BaseMessage]:
    if isinstance(given, BaseMessage):
        return [given]
    if isinstance(given, str):
        return [HumanMessage(given)]
    if not isinstance(given, Sequence):
        raise UsageError(f"The input's {key!r} is of type {type(given).__name__}: expected a text or messages.")
    likes: Sequence[MessageLikeRepresentation] = given
    try:
        return convert_to_messages(likes)
    except (NotImplementedError, ValueError) as error:
        raise UsageError(f"The input's {key!r} holds what is no message: {error}") from error
