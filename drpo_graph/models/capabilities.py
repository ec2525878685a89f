"""What an endpoint can do with one model, and the file that remembers it for a day."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from platformdirs import user_cache_path
from pydantic import ValidationError

from drpo_graph.models.terms import NO_TERMS, Terms
from drpo_graph.records import Record
from drpo_graph.safety.private_files import write_atomically
from drpo_graph.safety.redaction import remember_secret

logger = logging.getLogger(__name__)

PROBE_TEXT = "Capability check:"
"""How the user message of every probe request begins, so that servers and logs can tell them."""

CAPABILITIES_FORMAT = 1

NO_KEY = "EMPTY"
"""What servers without a key are sent, as vLLM's own documentation does."""

_DAY_S = 24 * 3600.0
_INCOMPLETE_S = 600.0
_FIELD_BY_RUNG = {"json_schema": "has_json_schema", "tool": "has_tools", "json": "has_json_mode"}
_DECIDED_BY_REQUEST = (
    "has_chat",
    "has_completions",
    "has_system_role",
    "has_n",
    "has_json_schema",
    "has_tools",
    "has_json_mode",
    "has_logprobs",
    "has_seed",
    "has_stop",
)

TokenDialect = Literal["vllm", "llama.cpp"]
"""Whose form of ``/tokenize`` a server speaks."""


@dataclass(frozen=True, slots=True)
class Address:
    """An OpenAI-compatible base URL, the model's name there, and the key."""

    base_url: str
    name: str
    api_key: str = field(default=NO_KEY, repr=False)
    key_advice: str = field(default="Check the API key and its environment variable.", repr=False, compare=False)
    """What to do where the server refuses the key."""

    def __post_init__(self) -> None:
        remember_secret(self.secret)

    @property
    def secret(self) -> str:
        """The key where it is one, so that messages can be kept free of it."""
        return "" if self.api_key == NO_KEY else self.api_key

    @property
    def place(self) -> str:
        """The base URL without user, password and query."""
        parts = urlsplit(self.base_url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    @property
    def root(self) -> str:
        """The server's own root, where the routes stand that OpenAI does not have."""
        return self.base_url.rstrip("/").removesuffix("/v1")


class Capabilities(Record):
    """What an endpoint can do with one model; ``None`` is unknown, never guessed."""

    server: str = ""
    """``vllm 0.32.0``, ``llama.cpp``; empty when the server does not tell."""
    is_listed: bool = False
    """Whether the server's list of models holds this one."""
    has_chat: bool | None = None
    """``/chat/completions`` answers: the model has a chat template."""
    has_completions: bool | None = None
    has_system_role: bool | None = None
    """``False`` when the role is refused, and when it is silently dropped."""
    has_n: bool | None = None
    """Several samples in one request."""
    has_json_schema: bool | None = None
    """A JSON schema is enforced, not merely accepted."""
    has_tools: bool | None = None
    """A call of a named function can be forced."""
    has_json_mode: bool | None = None
    has_logprobs: bool | None = None
    has_seed: bool | None = None
    """A seed is accepted; whether it helps is ``is_reproducible``."""
    is_reproducible: bool | None = None
    """Equal requests with one seed gave equal replies at temperature 1."""
    has_stop: bool | None = None
    reports_cached_tokens: bool | None = None
    max_context: int | None = None
    """Tokens of prompt and reply together."""
    counts_tokens: TokenDialect | None = None
    """Whose ``/tokenize`` the server has, so that prompts can be counted exactly."""
    terms: Terms = NO_TERMS
    """Fields of requests that the server refuses."""
    unproven: tuple[str, ...] = ()
    """Of what is missing, what the server refused no request for: the replies did not show it."""
    format: int = CAPABILITIES_FORMAT

    @property
    def first_rung(self) -> str:
        """The best rung of the reply ladder that is not known to be missing."""
        return next((rung for rung, name in _FIELD_BY_RUNG.items() if getattr(self, name) is not False), "text")

    @property
    def tried_rung(self) -> str:
        """The best rung that was not refused: a probe's replies may have been damaged, and a run's own calls tell."""
        refused = {name for name in _FIELD_BY_RUNG.values() if getattr(self, name) is False} - {*self.unproven}
        return next((rung for rung, name in _FIELD_BY_RUNG.items() if name not in refused), "text")

    @property
    def is_complete(self) -> bool:
        """Whether everything that a request decides is known."""
        return all(getattr(self, name) is not None for name in _DECIDED_BY_REQUEST)


class _Entry(Record):
    """One file of the cache."""

    identity: str
    model: str
    probed_at: float
    """Seconds since the epoch."""
    capabilities: Capabilities


class CapabilityCache:
    """Remembers capabilities for a day, one file per endpoint and model; what is incomplete for ten minutes.

    The files stand in the user's cache folder unless another one is given.
    """

    def __init__(self, folder: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = default_cache_folder() if folder is None else folder
        self._clock = clock

    def get(self, identity: str, model: str) -> Capabilities | None:
        """Return what is remembered, or ``None`` where it is nothing, too old, damaged or of another format."""
        try:
            entry = _Entry.model_validate_json(self._path(identity, model).read_bytes())
        except (OSError, ValidationError):
            return None
        is_same = (entry.identity, entry.model) == (identity, model)
        is_readable = entry.capabilities.format == CAPABILITIES_FORMAT
        lifetime_s = _DAY_S if entry.capabilities.is_complete else _INCOMPLETE_S
        is_fresh = 0 <= self._clock() - entry.probed_at < lifetime_s
        return entry.capabilities if is_same and is_readable and is_fresh else None

    def put(self, identity: str, model: str, *, capabilities: Capabilities) -> None:
        """Remember capabilities; a folder that cannot be written only costs the next run its head start."""
        entry = _Entry(identity=identity, model=model, probed_at=self._clock(), capabilities=capabilities)
        path = self._path(identity, model)
        try:
            write_atomically(path, entry.model_dump_json().encode())
        except OSError as error:
            logger.info("The capabilities of %s are not kept: %s", model, error)

    def _path(self, identity: str, model: str) -> Path:
        name = hashlib.sha256(json.dumps([identity, model]).encode()).hexdigest()[:32]
        return self.folder / f"{name}.json"


def default_cache_folder() -> Path:
    """Return the folder of the user's cache that capabilities are kept in."""
    return user_cache_path("drpo_graph", appauthor=False) / "capabilities"
