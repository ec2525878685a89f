"""How the fake server behaves, whatever its responder says."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from tests.support.fake_errors import ErrorForm
from tests.support.fake_replies import FaultPlan, Latency


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server behaves, whatever the responder says."""

    port: int = 0
    """0 takes a free one."""
    latency: Latency = field(default_factory=Latency)
    faults: FaultPlan | None = None
    api_key: str | None = None
    """Any other key gets 401."""
    models: Sequence[str] | None = None
    """Any other model gets 404; ``None`` takes every name."""
    ignore_n: bool = False
    """Always one choice."""
    reject_response_format: bool = False
    reject_tools: bool = False
    reject_system_role: bool = False
    system_role_words: str = "System role not supported"
    """What it is refused with."""
    error_form: ErrorForm = "openai"
    """How errors that requests for completions get are written."""
    reject_logprobs: bool = False
    max_top_logprobs: int | None = None
    """A request for more alternatives per token gets 400."""
    reject_chat: bool = False
    """The model has no chat template."""
    ignores_schema: bool = False
    """A probe's JSON schema is accepted and not enforced; so for the next four."""
    ignores_tools: bool = False
    ignores_json_mode: bool = False
    ignores_stop: bool = False
    ignores_seed: bool = False
    drops_system: bool = False
    """System messages are accepted and not read: the usage does not count them."""
    no_logprobs: bool = False
    """Accepted, and none given."""
    refuses: Sequence[str] = field(default_factory=list)
    """Fields of a chat that get 400 or 422, one at a time; ``temperature+top_p`` refuses both together."""
    refuses_like: Literal["openai", "anthropic", "mistral", "words"] = "openai"
    """Whose words the refusal is told in."""
    num_reasoning_tokens: int = 0
    """What the model thinks with before each reply; the token limit is for both, and too low a one leaves it empty."""
    reports_usage: bool = True
    reports_cached_tokens: bool = True
    server: Literal["", "vllm", "llama.cpp"] = ""
    """Whose routes beside OpenAI's it has, and whom its list of models names."""
    max_model_len: int | None = None
    tokenizes: Literal["vllm", "llama.cpp"] | None = None
    missing_routes: Sequence[str] = field(default_factory=list)
    """Paths that get 404."""
    probe_errors: Mapping[str, int] = field(default_factory=dict)
    """HTTP status by what a probe asks for, as ``features_of`` names it."""
    log_path: str | None = None
    """JSONL file that log entries are appended to, flushed line by line."""
    log_bodies: bool = False

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the options that ``json.dumps(asdict(options))`` wrote; what is left out has its default."""
        values = json.loads(text)
        values["latency"] = Latency(**values.get("latency", {}))
        values["faults"] = FaultPlan(**values["faults"]) if values.get("faults") else None
        return cls(**values)
