"""Settings of a run: read once, validated, frozen. Flags come before files, files before defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from drpo_graph.records import Record, Role
from drpo_graph.safety.redaction import find_secret_field, redact
from drpo_graph.settings.fingerprint import LeftOutAtDefault, Operational, fingerprint_fields
from drpo_graph.settings.limits import Limits
from drpo_graph.settings.prompt_rules import PromptRules
from drpo_graph.settings.retrieval import RetrievalSettings, VariableName

RewardAggregate = Literal["auto", "mean", "sum", "last"]
QueryPolicy = Literal["stream", "pool"]
Compat = Literal["none", "drpo"]
Routing = Literal["prefix", "least_loaded", "round_robin"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

UNSET = "none"
"""What users write for a sampling field that is not to be sent."""

COMPAT_DRPO: Mapping[str, JsonValue] = {
    "queries_per_level": 1,
    "query_policy": "stream",
    "keep_parents": False,
    "deduplicate": False,
    "reward_aggregate": "auto",
    "soft_scores": False,
    "placeholders": "none",
    "n_proposed": None,
}
"""What ``compat="drpo"`` fixes; a different explicit value is an error."""

COMPAT_DEFAULTS: Mapping[str, JsonValue] = {
    "depth": 20,
    "max_depth_increase": 10,
    "beam_size": 2,
    "n_actions": 3,
    "history_window": 5,
    "max_failure_share": 1.0,
}
"""The published command line's defaults, in force under ``compat="drpo"`` unless given."""

COMPAT_TEMPERATURE = 0.2
"""The published optimizer's temperature."""

_LEVELS_IN_POOL = 16


class RoleSettings(Record):
    """One role's model, where it is served and how it is sampled."""

    model: str = ""
    """``provider:model``, e.g. ``openai:gpt-5-mini``, ``vllm:meta-llama/Llama-3.1-8B-Instruct``, ``local:smollm2``."""
    base_url: Operational[str | tuple[str, ...] | None] = None
    """Base URL of an OpenAI-compatible API, ending in ``/v1``, or those of several servers of one model; the provider's
    own when absent."""
    api_key_env: Operational[VariableName | None] = None
    """Name of the environment variable that holds the key; the provider's own when absent."""
    temperature: float | None = Field(0.0, ge=0, le=2)
    """Of sampling; 0 takes the likeliest token. Not sent where it is ``None``, or ``none`` in a settings file: the
    model's own holds. So for ``top_p``."""
    top_p: float | None = Field(1.0, gt=0, le=1)
    """Probability mass that is sampled from."""
    reasoning_effort: LeftOutAtDefault[ReasoningEffort | None] = None
    """How much a reasoning model thinks before it answers; the model's own when absent."""
    max_tokens: int = Field(2048, ge=1)
    """Longest reply, in tokens; what a reasoning model thinks counts."""
    endpoint: Literal["auto", "chat", "completions"] = "auto"
    """``completions`` sends one text to ``/v1/completions``; ``auto`` does for a model without a chat template."""
    prompt_format: Literal["auto", "chat", "flat"] = "auto"
    """``flat`` puts system prompt and query into one text with headings; ``auto`` does for ``completions``."""
    system_role: Literal["auto", "keep", "merge"] = "auto"
    """``merge`` puts the system prompt into the user message; ``auto`` does so once a server refuses the role."""
    stop: tuple[str, ...] = ()
    """Texts that end a reply."""
    reply_mode: Literal["auto", "json_schema", "tool", "json", "text"] = "auto"
    """First rung of the reply ladder; ``auto`` starts at JSON schema and remembers what the server refuses."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of the request, e.g. vLLM's sampling extensions."""

    @field_validator("temperature", "top_p", mode="before")
    @classmethod
    def _read_unset(cls, value: object) -> object:
        # Settings files have no other word for it: TOML has no null.
        return None if isinstance(value, str) and value.strip().lower() == UNSET else value

    @field_validator("extra_body")
    @classmethod
    def _reject_secrets(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if (place := find_secret_field(value)) is not None:
            raise ValueError(
                f"{redact(place)!r} looks like a key, and settings are stored; name a variable with api_key_env"
            )
        return value

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The base URLs that are set, one per server."""
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url or ()


MAX_DEPTH, MAX_WIDTH = 4_000, 1_000
"""Beyond any search that ends; without a bound, whoever may choose a depth could hold up a server with planning it."""

_OPTIMIZER_SAMPLING = {"temperature": 0.7, "top_p": 0.95}


class Settings(RetrievalSettings, PromptRules):
    """Everything that decides what a run does, but for its queries.

    ``depth`` counts the root, as in the published code: ``depth=10`` searches nine levels. The defaults are those that
    found the best prompts at equal numbers of calls (``scripts/compare_searches.py``).
    """

    compat: Compat = "none"
    """``drpo`` reproduces the published search rule by rule."""
    seed: int = 0
    """Of every draw."""
    initial_prompt: str = "You are a helpful assistant."
    """The prompt to start from."""

    base: RoleSettings = Field(default_factory=RoleSettings)
    metrics: RoleSettings = Field(default_factory=RoleSettings)
    critic: RoleSettings = Field(default_factory=RoleSettings)
    optimizer: RoleSettings = Field(default_factory=lambda: RoleSettings.model_validate(_OPTIMIZER_SAMPLING))

    depth: int = Field(30, ge=2, le=MAX_DEPTH)
    """Depth of the tree; the root counts, so it is levels + 1."""
    max_depth_increase: int = Field(5, ge=0, le=MAX_DEPTH)
    """How many levels easy levels may add in all."""
    beam_size: int = Field(2, ge=1, le=MAX_WIDTH)
    """Prompts kept per level."""
    n_actions: int = Field(2, ge=1, le=MAX_WIDTH)
    """Rewrites per candidate and level that are run."""
    n_proposed: LeftOutAtDefault[int | None] = Field(None, ge=1, le=MAX_WIDTH)
    """Rewrites per candidate and level that are written, of which a screen drops all but ``n_actions`` before they are
    run; as many as are run when absent."""
    queries_per_level: int = Field(2, ge=1)
    """Queries that each prompt of a level answers."""
    query_policy: QueryPolicy = "pool"
    """``stream`` takes new queries each level; ``pool`` uses ``pool_size`` queries again and again."""
    pool_size: int | None = Field(None, ge=1)
    """Queries in the pool; sixteen levels' worth when absent. No more than a level needs makes all levels alike."""
    keep_parents: bool = False
    """Whether a candidate competes with its own rewrites."""
    deduplicate: bool = True
    """Whether equal prompts may take only one place in the beam."""
    reward_aggregate: RewardAggregate = "auto"
    """How rewards along a path become its path reward; ``auto`` is the published rule: mean, or last if beam is 1."""
    skip_threshold: float = Field(4.5, ge=1, le=5)
    """A candidate whose reward is above this is kept as it is and makes its level easy."""
    history_window: int = Field(10, ge=1)
    """How many prompts of its path the optimizer sees, the current one included."""
    soft_scores: bool = False
    """Whether a metric's score is the expectation over the probabilities of 1 to 5, where the critic's server tells."""
    max_metrics: int = Field(5, ge=1)
    """Metrics selected per query at most; the paper has 2 to 5."""
    max_rationale_chars: int | None = Field(None, ge=40)
    """Bound on each rationale, reason and analysis, for servers that enforce JSON schemas: small models ramble."""
    max_prompt_chars: int | None = Field(None, ge=100)
    """Bound on each rewritten prompt, about four characters to a token; a longer one is not used, but under compat."""
    max_critiques_shown: int | None = Field(None, ge=1)
    """How many critiques the optimizer sees, worst first; all when absent."""
    max_critique_chars: int = Field(24_000, ge=500)
    """Bound on the critiques shown to the optimizer, in characters (about four to a token)."""

    beam_sampling: Literal["top", "stochastic"] = "top"
    """``stochastic`` draws the beam with probability proportional to exp(path reward / temperature)."""
    beam_temperature: float = Field(1.0, gt=0)
    """Of the stochastic draw on the first level."""
    beam_temperature_decay: float = Field(1.0, gt=0, le=1)
    """Factor on the beam temperature per level."""
    min_reward: float | None = None
    """Children with a lower path reward are rejected, unless that would empty the beam."""
    stop_reward: float | None = None
    """End the search as soon as a candidate's path reward reaches this."""

    num_queries: int | None = Field(None, ge=1)
    """Training queries to use; all when absent."""
    templates: Operational[Path | None] = None
    """A folder whose prompt templates replace ours, file by file."""
    metrics_cache: Operational[Path | None] = None
    """A JSON file of metrics selected before, in the published form; its queries are not asked about again."""

    max_concurrency: Operational[int] = Field(32, ge=1)
    """Calls in flight per endpoint."""
    requests_per_second: Operational[float | None] = Field(None, gt=0)
    """Rate limit per endpoint."""
    probe: Operational[bool] = True
    """Whether endpoints are asked, in one round, what no call would show; without, a run learns from refusals alone."""
    routing: Operational[Routing] = "prefix"
    """Which of several servers takes a request: the one that was sent the beginning of its prompt before, while it is
    not overloaded; ``least_loaded``; or ``round_robin``."""
    timeout_s: Operational[float] = Field(180.0, gt=0)
    """Longest wait for one reply."""
    max_reply_mb: Operational[float | None] = Field(None, gt=0)
    """Longest answer to a call, in megabytes when decompressed; by default what its ``max_tokens`` and samples may
    become, and 4 MB besides."""
    max_retries: Operational[int] = Field(6, ge=0)
    """Further tries after a transport failure."""
    retry_wait_s: Operational[float] = Field(0.5, gt=0)
    """Wait before the first further try, about twice as long before each one after it, unless the server says when;
    also before a lost endpoint is tried again."""
    max_outage_s: Operational[float] = Field(600.0, ge=0)
    """How long a run waits for an endpoint that was lost; 0 does not wait."""
    max_failure_share: Operational[float] = Field(0.5, gt=0, le=1)
    """Stop when more of a role's last 50 samples (20 at least) have no usable reply; 1 never stops."""
    approve: Operational[bool] = False
    """Whether a person decides about each level's beam before the run goes on."""
    max_reply_attempts: int = Field(3, ge=1)
    """Replies asked for before the one repair request, when a reply cannot be used."""

    @model_validator(mode="before")
    @classmethod
    def _apply_compat(cls, values: object) -> object:
        if not isinstance(values, dict) or values.get("compat") != "drpo":
            return values
        for name, fixed in COMPAT_DRPO.items():
            if values.get(name, fixed) != fixed:
                raise ValueError(f"{name}={values[name]!r} contradicts compat='drpo', which fixes it at {fixed!r}")
        filled = {**COMPAT_DEFAULTS, **COMPAT_DRPO, **values}
        optimizer = filled.get("optimizer", {})
        if isinstance(optimizer, Mapping):
            filled["optimizer"] = {"temperature": COMPAT_TEMPERATURE, **optimizer}
        return filled

    @field_validator("optimizer", mode="before")
    @classmethod
    def _keep_optimizer_sampling(cls, value: object) -> object:
        # A partly given optimizer keeps its own sampling defaults, not the other roles'.
        return {**_OPTIMIZER_SAMPLING, **value} if isinstance(value, Mapping) else value

    @field_validator("initial_prompt")
    @classmethod
    def _reject_blank_prompt(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the initial prompt is blank")
        return value

    @model_validator(mode="after")
    def _check_pool(self) -> "Settings":
        if self.pool_size is not None and self.pool_size < self.queries_per_level:
            raise ValueError(f"pool_size={self.pool_size} is less than queries_per_level={self.queries_per_level}")
        return self

    @model_validator(mode="after")
    def _check_proposed(self) -> "Settings":
        if self.n_proposed is not None and self.n_proposed < self.n_actions:
            raise ValueError(f"n_proposed={self.n_proposed} is less than n_actions={self.n_actions}, which are run")
        return self

    @property
    def num_proposed(self) -> int:
        """How many rewrites the optimizer is asked for at once."""
        return self.n_proposed or self.n_actions

    @property
    def is_screened(self) -> bool:
        """Whether more rewrites are written than are run."""
        return self.num_proposed > self.n_actions

    @property
    def called_embeddings(self) -> str:
        """The embeddings model that is called at an endpoint; empty where nothing is embedded, or nothing is called."""
        is_called = self.embeddings.startswith("openai:") and (self.ret_icl or self.is_screened)
        return self.embeddings if is_called else ""

    @property
    def is_compat(self) -> bool:
        """Whether the published search is reproduced."""
        return self.compat == "drpo"

    @property
    def num_pooled(self) -> int:
        """How many queries the pool has, where the dataset has as many."""
        return self.pool_size or _LEVELS_IN_POOL * self.queries_per_level

    @property
    def num_levels(self) -> int:
        """Levels searched before easy levels add any."""
        return self.depth - 1

    def with_limits_of(self, other: Limits) -> "Settings":
        """Return these settings with another's budget."""
        return self.model_copy(update={name: getattr(other, name) for name in Limits.model_fields})

    def role(self, role: Role) -> RoleSettings:
        """Return one role's settings."""
        return {"base": self.base, "metrics": self.metrics, "critic": self.critic, "optimizer": self.optimizer}[role]

    def fingerprint_fields(self) -> dict[str, JsonValue]:
        """Return what a resumed run must have in common with its start: not where models are served, nor how fast."""
        return fingerprint_fields(self)
