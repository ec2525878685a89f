"""How many tokens a prompt has, as the server that will read it counts them."""

from collections.abc import Sequence

from pydantic import JsonValue

from drpo_graph.models.capabilities import TokenDialect
from drpo_graph.models.failures import CallFailure
from drpo_graph.models.http_json import Answer, Wire
from drpo_graph.prompts.library import Message


async def count_tokens(wire: Wire, messages: Sequence[Message] | str, *, dialect: TokenDialect | None) -> int | None:
    """Return the exact number of prompt tokens, or ``None`` when the server cannot tell.

    Args:
        messages: Chat messages, counted with the model's chat template; a text is counted as a flat prompt.
        dialect: What :attr:`~drpo_graph.models.capabilities.Capabilities.counts_tokens` says of the server.
    """
    if dialect is None:
        return None
    url = f"{wire.address.root}/tokenize"
    if dialect == "vllm":
        asked: dict[str, JsonValue] = (
            {"prompt": messages} if isinstance(messages, str) else {"messages": _as_turns(messages)}
        )
        return read_count(await wire.post(url, {"model": wire.address.name, **asked}))
    text = messages if isinstance(messages, str) else await _apply_template(wire, messages)
    if text is None:
        return None
    # As the server itself reads a request: with the tokens that begin a text, and with those that the text spells.
    return read_count(await wire.post(url, {"content": text, "add_special": True, "parse_special": True}))


async def _apply_template(wire: Wire, messages: Sequence[Message]) -> str | None:
    answer = await wire.post(f"{wire.address.root}/apply-template", {"messages": _as_turns(messages)})
    prompt = None if isinstance(answer, CallFailure) else answer.get("prompt")
    return prompt if isinstance(prompt, str) else None


def _as_turns(messages: Sequence[Message]) -> list[JsonValue]:
    return [{"role": one["role"], "content": one["content"]} for one in messages]


def read_count(answer: Answer) -> int | None:
    """Return the count in an answer of ``/tokenize``: stated by vLLM, the length of llama.cpp's list."""
    if isinstance(answer, CallFailure):
        return None
    count, tokens = answer.get("count"), answer.get("tokens")
    if isinstance(count, int) and not isinstance(count, bool):
        return count
    return len(tokens) if isinstance(tokens, list) else None
