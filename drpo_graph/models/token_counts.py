"""How many tokens a prompt has, as the server that will read it counts them."""

from collections.abc import Sequence

from pydantic import JsonValue

from drpo_graph.models.capabilities import Address, TokenDialect
from drpo_graph.models.failures import CallFailure
from drpo_graph.models.http_json import Answer, Wire
from drpo_graph.prompts.library import Message

_TIMEOUT_S = 30.0


async def count_tokens(
    address: Address, dialect: TokenDialect | None, messages: Sequence[Message] | str, *, wire: Wire | None = None
) -> int | None:
    """Return the exact number of prompt tokens, or ``None`` when the server cannot tell.

    Args:
        address: The server and the model's name there.
        dialect: What :attr:`~drpo_graph.models.capabilities.Capabilities.counts_tokens` says of it.
        messages: Chat messages, counted with the model's chat template; a text is counted as a flat prompt.
        wire: An open connection to the address, for callers that count often; a new one when absent.
    """
    if dialect is None:
        return None
    if wire is None:
        async with Wire(address, timeout_s=_TIMEOUT_S) as own:
            return await _count(own, dialect, messages=messages)
    return await _count(wire, dialect, messages=messages)


async def _count(wire: Wire, dialect: TokenDialect, *, messages: Sequence[Message] | str) -> int | None:
    root = wire.address.root
    turns: list[JsonValue] = []
    if not isinstance(messages, str):
        turns = [{"role": one["role"], "content": one["content"]} for one in messages]
    if dialect == "vllm":
        asked: dict[str, JsonValue] = {"prompt": messages} if isinstance(messages, str) else {"messages": turns}
        return read_count(await wire.post(f"{root}/tokenize", {"model": wire.address.name, **asked}))
    text: JsonValue = messages if isinstance(messages, str) else None
    if text is None:
        templated = await wire.post(f"{root}/apply-template", {"messages": turns})
        text = None if isinstance(templated, CallFailure) else templated.get("prompt")
    if not isinstance(text, str):
        return None
    # As the server itself reads a request: with the tokens that begin a text, and with those that the text spells.
    return read_count(
        await wire.post(f"{root}/tokenize", {"content": text, "add_special": True, "parse_special": True})
    )


def read_count(answer: Answer) -> int | None:
    """Return the count in an answer of ``/tokenize``: stated by vLLM, the length of llama.cpp's list."""
    if isinstance(answer, CallFailure):
        return None
    count, tokens = answer.get("count"), answer.get("tokens")
    if isinstance(count, int) and not isinstance(count, bool):
        return count
    return len(tokens) if isinstance(tokens, list) else None
