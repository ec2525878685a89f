"""What LangChain or a completions endpoint answered, read as a reply."""

import json
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from drpo_graph.models.failures import MAX_QUOTED, MalformedReplyError
from drpo_graph.models.request import Choice, Piece, Reply
from drpo_graph.models.token_scores import find_score_tokens, read_tokens
from drpo_graph.models.usage import is_untrue, is_untrue_in, read_usage, usage_in
from drpo_graph.records import Usage


def read_result(result: LLMResult) -> Reply:
    """Return the reply in what LangChain makes of an answer."""
    generations = [cast(ChatGeneration, one) for one in result.generations[0]]
    choices = tuple(_read_message(one) for one in generations)
    if told := (result.llm_output or {}).get("token_usage"):
        return Reply(choices, read_usage(told))
    if not generations:
        return Reply(choices, Usage(calls=1))
    # As LangChain normalises it: on the message, where other providers put it.
    own = generations[0].message
    return Reply(choices, usage_in(own), has_untrue_usage=is_untrue_in(own))


def _read_message(generation: ChatGeneration) -> Choice:
    message = generation.message
    metadata = {**message.response_metadata, **(generation.generation_info or {})}
    reason = metadata.get("finish_reason") or metadata.get("stop_reason") or "stop"
    refusal = message.additional_kwargs.get("refusal")
    # A plain text: LangChain's own kind is refused by records where half a character stands in it.
    text = str(message.text)
    if isinstance(message, AIMessage) and message.tool_calls:
        text = json.dumps(message.tool_calls[0]["args"])
    elif isinstance(message, AIMessage) and message.invalid_tool_calls:
        text = message.invalid_tool_calls[0]["args"] or ""
    return Choice(
        text=text,
        finish_reason=str(reason),
        refusal=refusal if isinstance(refusal, str) else None,
        score_tokens=find_score_tokens(read_tokens(metadata.get("logprobs")), text),
    )


def read_completion(answer: Mapping[str, object]) -> Reply:
    """Return the reply in an answer of ``/v1/completions``.

    Raises:
        MalformedReplyError: it is none; some gateways answer 200 with an error in the body.
    """
    try:
        choices = tuple(_read_completed(one) for one in cast(Any, answer["choices"]))
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedReplyError(f"the server's answer is no completion: {str(answer)[:MAX_QUOTED]}") from error
    told = answer.get("usage")
    return Reply(choices, read_usage(told), has_untrue_usage=is_untrue(told))


def _read_completed(given: Mapping[str, Any]) -> Choice:
    text = given["text"] or ""
    if not isinstance(text, str):
        raise TypeError("its text is none")
    score_tokens = find_score_tokens(read_tokens(given.get("logprobs")), text)
    return Choice(text=text, finish_reason=str(given.get("finish_reason") or "stop"), score_tokens=score_tokens)


def read_part(part: Mapping[str, object]) -> Piece:
    """Return what a part of a streamed completion adds; the last one has the usage and no choice."""
    given = part.get("choices")
    usage = read_usage(part["usage"]) if part.get("usage") else None
    choice = given[0] if isinstance(given, list) and given else None
    if not isinstance(choice, Mapping):
        return Piece(usage=usage)
    text, reason = choice.get("text"), choice.get("finish_reason")
    return Piece(text if isinstance(text, str) else "", finish_reason=str(reason) if reason else None, usage=usage)
