"""An agent's chat model by the names that a search takes."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from drpo_graph.errors import ModelSpecError
from drpo_graph.models.clients import find_endpoints
from drpo_graph.settings.layers import build_settings


def open_chat_model(
    model: str,
    *,
    base_url: str | None = None,
    api_key_env: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> BaseChatModel:
    """Return a chat model that takes tools: ``openai:NAME``, ``vllm:NAME``, ``local:smollm2``, or LangChain's others.

    It is LangChain's own client, with the client's own retries. :class:`~drpo_graph.inference.AlignedModel` asks as a
    search does, base models too, but takes no tools.

    Args:
        model: ``provider:model``.
        base_url: OpenAI-compatible API, ends in ``/v1``.
        api_key_env: Environment variable that holds the key.
        temperature: The model's own when absent.
        max_tokens: Longest reply; the model's own limit when absent.

    Raises:
        ModelSpecError: the string or the URL is malformed, the key or a package is missing.
        SettingsError: another value cannot be used.
    """
    place = {"model": model, "base_url": base_url, "api_key_env": api_key_env}
    endpoints = find_endpoints("base", build_settings({"base": place}).base)
    if not endpoints:
        sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        try:
            from langchain.chat_models import init_chat_model  # Slow to load.

            made: BaseChatModel = init_chat_model(
                model, **{name: one for name, one in sampling.items() if one is not None}
            )
            return made
        except (ImportError, ValueError) as error:
            raise ModelSpecError(f"The agent's model {model!r}: {error}") from error
    from langchain_openai import ChatOpenAI  # Two seconds to import.

    address = endpoints[0].address
    return ChatOpenAI(
        model=address.name,
        base_url=address.base_url,
        api_key=SecretStr(address.api_key),
        temperature=temperature,
        max_completion_tokens=max_tokens,
        # Some names would switch to another API, which few servers have.
        use_responses_api=False,
    )
