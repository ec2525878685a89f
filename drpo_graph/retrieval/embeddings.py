"""From ``local:NAME`` and ``openai:NAME`` to LangChain's ``Embeddings``."""

import os
from urllib.parse import urlsplit

from langchain_core.embeddings import Embeddings

from drpo_graph.errors import ModelSpecError
from drpo_graph.models.capabilities import NO_KEY, Address
from drpo_graph.models.surroundings import check_key, check_surroundings
from drpo_graph.retrieval.endpoint import EndpointEmbeddings
from drpo_graph.retrieval.local import LOCAL_MODEL, MiniLMEmbeddings
from drpo_graph.settings.retrieval import DEFAULT_EMBEDDINGS

_OPENAI_URL = "https://api.openai.com/v1"


def make_embeddings(spec: str, *, base_url: str | None = None, api_key_env: str | None = None) -> Embeddings:
    """Return the embeddings that a string names; neither a model nor a connection is opened yet.

    Args:
        spec: ``local:all-minilm-l6-v2``, or ``openai:NAME`` for any OpenAI-compatible ``/v1/embeddings``.
        base_url: Where that is, ending in ``/v1``; ``OPENAI_BASE_URL``, else OpenAI, when absent.
        api_key_env: The environment variable that holds the key; ``OPENAI_API_KEY`` when absent.

    Raises:
        ModelSpecError: the string or the address is malformed, the key is missing or no key, or the environment
            allows no HTTP client.
    """
    provider, _, name = spec.partition(":")
    if provider == "local" and name == LOCAL_MODEL:
        return MiniLMEmbeddings()
    if provider != "openai" or not name:
        raise ModelSpecError(
            f"Embeddings {spec!r}: expected {DEFAULT_EMBEDDINGS}, or openai:NAME for an OpenAI-compatible endpoint."
        )
    url = _check_url(base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI_URL)
    check_surroundings()
    variable = api_key_env or "OPENAI_API_KEY"
    key = os.environ.get(variable)
    if not key and (api_key_env is not None or urlsplit(url).hostname == "api.openai.com"):
        raise ModelSpecError(f"Embeddings {spec!r}: set the environment variable {variable}.")
    if key is not None:
        check_key(key, variable)
    advice = f"Check the API key in {variable}." if key else f"Check the API key: none was sent, set {variable}."
    return EndpointEmbeddings(Address(url, name, key or NO_KEY, advice))


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # A bracket left open, or a port that is no number.
        is_address = False
    if not is_address or "@" in parts.netloc or parts.query or parts.fragment:
        # What came is not shown: a password or a key may be in it.
        raise ModelSpecError(
            "The embeddings' base URL cannot be used: expected http(s)://host[:port]/v1, without a password or a "
            "query; name a variable that holds the key with embeddings_api_key_env."
        )
    return url.rstrip("/")
