"""From ``provider:model`` strings to clients.

``openai:NAME``, ``vllm:NAME`` and any OpenAI-compatible URL go through ``ChatOpenAI``; ``local:smollm2`` through the
embedded server; other providers through LangChain's ``init_chat_model`` where the package ``langchain`` is installed.
Client-side retries are off: the one retry loop is in :mod:`drpo_graph.calls.channel`.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr

from drpo_graph.errors import ModelSpecError
from drpo_graph.models.balancer import Balancer, Replica
from drpo_graph.models.capabilities import NO_KEY, Address
from drpo_graph.models.context_window import ContextWindow
from drpo_graph.models.embedded import serve_embedded
from drpo_graph.models.endpoint_gate import gate_for
from drpo_graph.models.given_models import FallbackTransport, GivenModel, OneModel, name_model, unfold
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.request import Reply, Request
from drpo_graph.models.surroundings import check_key, check_surroundings
from drpo_graph.models.terms import Terms
from drpo_graph.models.transport import LangChainTransport, OpenAITransport, Transport, without_refused
from drpo_graph.prompts.library import PromptFormat
from drpo_graph.records import ROLES, Role
from drpo_graph.safety.redaction import remember_secret
from drpo_graph.settings.settings import RoleSettings, Settings

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

DEFAULT_VLLM_URL = "http://127.0.0.1:8000/v1"
_VLLM_KEY = "VLLM_API_KEY"
_OPENAI_URL = "https://api.openai.com/v1"


class Endpoint(NamedTuple):
    """Where an OpenAI-compatible model is served."""

    address: Address
    identity: str
    """What is served there, by a name that outlives the process."""


@dataclass(frozen=True, slots=True)
class ModelClient:
    """A role's model: where its requests go and how it is sampled. Shared by the runs of a process."""

    role: Role
    settings: RoleSettings
    balancer: Balancer
    endpoint: Literal["chat", "completions"] = "chat"
    prompt_format: PromptFormat = "chat"
    """How the base model is asked for a response."""
    window: ContextWindow | None = None
    """The model's context, where it is known."""

    @property
    def served(self) -> str:
        """The model and its servers, by names that outlive the process: alike for all roles that share them."""
        return " ".join([self.settings.model, *sorted(one.identity or one.endpoint for one in self.replicas)])

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The servers that its requests go to."""
        return self.balancer.replicas


def build_clients(
    settings: Settings,
    models: "Mapping[Role, GivenModel] | None" = None,
    *,
    optional: Collection[Role] = (),
) -> dict[Role, ModelClient]:
    """Return each role's client: a given chat model instance, or one made from the role's model string.

    Args:
        settings: Names the models.
        models: Chat model instances, bound or with fallbacks, in place of the settings' strings.
        optional: Roles that may have no model: only calling one without is an error.

    Raises:
        ModelSpecError: a role has no model, or its string cannot be resolved.
    """
    given = models or {}
    return {
        role: _build_absent(role, settings)
        if role in optional and role not in given and not settings.role(role).model
        else build_client(role, settings, given.get(role))
        for role in ROLES
    }


class _AbsentTransport:
    """Stands for a role without a model."""

    def __init__(self, role: Role) -> None:
        self._role = role

    async def send(self, request: Request) -> Reply:
        """Raise: there is no model to ask."""
        raise ModelSpecError(f"The {self._role} model is not set, but it was called. Give --{self._role}-model.")


def _build_absent(role: Role, settings: Settings) -> ModelClient:
    replica = _make_replica(_AbsentTransport(role), "none", settings=settings)
    return ModelClient(role, settings.role(role), Balancer((replica,), settings.routing))


def build_client(
    role: Role, settings: Settings, model: "GivenModel | None" = None, *, keeps_cache: bool = False
) -> ModelClient:
    """Return one role's client; LangChain's cache answers for a given model only where it is kept.

    Raises:
        ModelSpecError: the role has no model, or its string cannot be resolved.
        SettingsError: what is given is no chat model.
    """
    role_settings = settings.role(role)
    if model is None:
        replicas = _open(role, settings)
    else:
        name = name_model(unfold(role, model)[0].model)
        replicas = [_open_given(role, model, settings, keeps_cache=keeps_cache)]
        role_settings = role_settings.model_copy(update={"model": role_settings.model or name})
    return ModelClient(role, role_settings, Balancer(tuple(replicas), settings.routing))


def _make_replica(
    transport: Transport, place: str, *, settings: Settings, secret: str = "", endpoint: Endpoint | None = None
) -> Replica:
    return Replica(
        endpoint=place,
        transport=transport,
        gate=partial(
            gate_for,
            place,
            max_concurrency=settings.max_concurrency,
            requests_per_second=settings.requests_per_second,
        ),
        secret=secret,
        address=endpoint.address if endpoint else None,
        identity=endpoint.identity if endpoint else "",
    )


def find_endpoints(role: Role, settings: RoleSettings) -> tuple[Endpoint, ...]:
    """Return where an OpenAI-compatible model string points, one per server; none for another provider's.

    Raises:
        ModelSpecError: the string or a URL is malformed, the key is missing or no key, or the environment allows no
            HTTP client.
    """
    provider, separator, name = settings.model.partition(":")
    if not settings.model:
        raise ModelSpecError(
            f"The {role} model is not set. Give --model for all roles or --{role}-model, e.g. openai:gpt-5-mini, "
            "vllm:NAME or local:smollm2."
        )
    if not separator or not name:
        raise ModelSpecError(f"The {role} model {settings.model!r}: expected provider:model, e.g. openai:gpt-5-mini.")
    check_surroundings()
    if provider == "local":
        server = serve_embedded(name)
        return (Endpoint(Address(server.base_url, name, server.api_key), server.identity),)
    if provider == "vllm":
        urls = settings.base_urls or _split_urls(os.environ.get("VLLM_BASE_URL", "")) or (DEFAULT_VLLM_URL,)
        variable = _VLLM_KEY
    elif provider == "openai" or settings.base_urls:
        urls = settings.base_urls or _split_urls(os.environ.get("OPENAI_BASE_URL", "")) or (_OPENAI_URL,)
        variable = "OPENAI_API_KEY"
        name = name if provider == "openai" else settings.model
    else:
        return ()
    key = _read_key(role, settings, variable)
    checked = dict.fromkeys(_check_url(role, url) for url in urls)
    if key is None and any(urlsplit(url).hostname == "api.openai.com" for url in checked):
        raise ModelSpecError(f"The {role} model {settings.model!r}: set OPENAI_API_KEY.")
    advice = _advise_key(settings.api_key_env or variable, is_sent=key is not None)
    return tuple(Endpoint(Address(url, name, key or NO_KEY, advice), url) for url in checked)


def _advise_key(variable: str, *, is_sent: bool) -> str:
    """Return what to do where a server refuses the key from a variable, or wants one where none is set."""
    what = f"Check the API key in {variable}" if is_sent else f"Check the API key: none was sent, set {variable}"
    if variable != _VLLM_KEY:
        return f"{what}."
    return f"{what}; the one of a `drpo serve` stands in the file that it prints (drpo_runs/serve/*.key)."


def _split_urls(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _open(role: Role, settings: Settings) -> list[Replica]:
    role_settings = settings.role(role)
    endpoints = find_endpoints(role, role_settings)
    if not endpoints:
        model = _init_other_provider(role, role_settings)
        return [_make_replica(LangChainTransport(model), role_settings.model.partition(":")[0], settings=settings)]
    return [
        _make_replica(
            _open_transport(one.address, settings),
            one.address.base_url,
            settings=settings,
            secret=one.address.secret,
            endpoint=one,
        )
        for one in endpoints
    ]


def _open_transport(address: Address, settings: Settings) -> Transport:
    # Two seconds to import: only a run that calls models pays for it.
    from drpo_graph.models.http_json import CompletionsClient
    from drpo_graph.models.openai_clients import open_chat

    timeout_s, max_reply_mb = settings.timeout_s, settings.max_reply_mb
    chat = PerLoop(partial(open_chat, address, timeout_s=timeout_s, max_reply_mb=max_reply_mb))
    completions = PerLoop(partial(CompletionsClient, address, timeout_s=timeout_s, max_reply_mb=max_reply_mb))
    return OpenAITransport(chat.get, completions.get)


def _open_given(role: Role, given: "GivenModel", settings: Settings, *, keeps_cache: bool) -> Replica:
    """Return the replica of a chat model instance that the caller made, and of those that it falls back to."""
    models = unfold(role, given)
    replicas = [_open_one(one, settings, keeps_cache=keeps_cache) for one in models]
    if len(replicas) == 1:
        return replicas[0]
    ways = [(one, replica.transport) for one, replica in zip(models, replicas, strict=True)]
    return replace(replicas[0], transport=FallbackTransport(ways))


def _open_one(one: OneModel, settings: Settings, *, keeps_cache: bool) -> Replica:
    model, bound = one.model, one.bound
    _remember_keys(model)
    name = type(model).__name__
    if not any(kind.__name__ == "BaseChatOpenAI" for kind in type(model).__mro__):
        transport = LangChainTransport(model, bound=bound, keeps_cache=keeps_cache)
        return _make_replica(transport, name, settings=settings)
    from drpo_graph.models.openai_clients import without_retries

    own = without_retries(model, keeps_cache=keeps_cache)
    key = getattr(model, "openai_api_key", None)
    url = getattr(model, "openai_api_base", None)
    return _make_replica(
        OpenAITransport(lambda: own, bound=bound),
        Address(url, name).place if isinstance(url, str) else name,
        settings=settings,
        secret=key.get_secret_value() if isinstance(key, SecretStr) else "",
    )


def _init_other_provider(role: Role, settings: RoleSettings) -> "BaseChatModel":
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise ModelSpecError(
            f"The {role} model {settings.model!r}: this provider needs LangChain. Run: pip install langchain "
            "and the provider's package, or give --base-url for an OpenAI-compatible server."
        ) from error
    key = _read_key(role, settings, "")
    chosen: dict[str, Any] = {
        "api_key": key or None,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "reasoning_effort": settings.reasoning_effort,
    }
    try:
        model: BaseChatModel = init_chat_model(
            settings.model,
            **{name: value for name, value in chosen.items() if value is not None},
            max_tokens=settings.max_tokens,
            max_retries=0,
            cache=False,
        )
    except (ImportError, ValueError) as error:
        raise ModelSpecError(f"The {role} model {settings.model!r}: {error}") from error
    _remember_keys(model)
    # Some clients have values of their own.
    unset = tuple(name for name in ("temperature", "top_p") if getattr(settings, name) is None)
    return without_refused(model, Terms(dropped=unset))


def _remember_keys(model: "BaseChatModel") -> None:
    """Have the keys of a model instance hidden in messages, whatever its provider calls them."""
    for value in vars(model).values():
        if isinstance(value, SecretStr):
            remember_secret(value.get_secret_value())


def _read_key(role: Role, settings: RoleSettings, default_name: str) -> str | None:
    if settings.api_key_env is None:
        given = os.environ.get(default_name)
        return check_key(given, default_name) if given is not None else None
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise ModelSpecError(
            f"The {role} model {settings.model!r}: environment variable {settings.api_key_env} is not set."
        )
    return check_key(key, settings.api_key_env)


def _check_url(role: Role, url: str) -> str:
    what = f"The {role} model's base URL"
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # A bracket left open, or a port that is no number.
        raise ModelSpecError(f"{what} cannot be read: expected http(s)://host[:port]/v1.") from None
    if "@" in parts.netloc:
        raise ModelSpecError(f"{what} must not hold a password; name a variable with --api-key-env.")
    if not is_address or parts.query or parts.fragment:
        raise ModelSpecError(f"{what} {Address(url, '').place!r}: expected http(s)://host[:port]/v1, without a query.")
    return url.rstrip("/")
