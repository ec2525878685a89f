"""Fit a role's client to what its endpoint can do: found out once, remembered with the run."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pydantic import JsonValue, ValidationError

from drpo_graph.calls.channel import Learned
from drpo_graph.calls.ladder import LADDER
from drpo_graph.errors import ModelCallError
from drpo_graph.models.capabilities import Address, Capabilities, CapabilityCache, TokenDialect
from drpo_graph.models.clients import ModelClient
from drpo_graph.models.context_window import ContextWindow
from drpo_graph.models.patience import NO_PATIENCE, Patience
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.request import Request
from drpo_graph.prompts.flat import join_messages
from drpo_graph.prompts.library import Message
from drpo_graph.records import Role
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive

if TYPE_CHECKING:
    from drpo_graph.models.http_json import Wire

_WEAKEST = ("has_chat", "has_system_role", "has_n", "has_json_schema", "has_tools", "has_json_mode", "has_logprobs")
_COUNT_TIMEOUT_S = 30.0
_PASSING_KINDS = ("unreachable", "timeout", "http_429")


async def find_capabilities(
    client: ModelClient,
    *,
    archive: Archive,
    cache: CapabilityCache | None,
    roles: Sequence[Role] = (),
    may_ask: bool = True,
    patience: Patience = NO_PATIENCE,
) -> Capabilities | None:
    """Return what a client's servers can do: as the run found it first, else as remembered, else by asking them.

    A resumed run asks as it did before, whatever its servers say now: its finished calls are found by what was asked.

    Args:
        roles: All that share the model and its servers, where that is more than the client's own: they decide what is
            worth a request.
        may_ask: Whether the servers may be asked; else a new run knows nothing, then and when it is resumed.
        patience: How they are waited for.

    Returns:
        What all of them can; ``None`` for a model that is not behind an OpenAI-compatible URL.

    Raises:
        ModelCallError: none of the servers can be used, one refuses the key or does not know the model, or limits last
            longer than is waited for.
    """
    addresses = [(one.address, one.identity) for one in client.replicas if one.address is not None]
    if not addresses:
        return None
    keys = [f"{role}/{client.settings.model}" for role in roles or (client.role,)]
    stored = await archive.record("capabilities", keys[0], Capabilities)
    if stored is not None:
        return stored
    try:
        asked = partial(_ask_all, addresses, cache, roles or (client.role,), patience=patience)
        found = _weakest(await asked()) if may_ask else Capabilities()
    except ModelCallError as error:
        # It says "The model ... at ...", of a server that several roles may share.
        message = f"The {client.role} {str(error).removeprefix('The ')}"
        raise ModelCallError(message, kind=error.kind, role=client.role) from error
    for key in keys:
        await archive.put("capabilities", key, found.model_dump(mode="json"))
    return found


async def _ask_all(
    addresses: Sequence[tuple[Address, str]],
    cache: CapabilityCache | None,
    roles: Collection[Role],
    *,
    patience: Patience,
) -> list[Capabilities]:
    # Loads the client library: only a run that asks pays for it.
    from drpo_graph.models.probing.survey import Wanted, survey

    # The prompt that a search is for must reach its model; the other roles' replies show what reaches theirs. Requests
    # for metrics are the shortest of all, and need no look at how long the context is.
    wanted = Wanted(has_chat="base" in roles, has_context=set(roles) != {"metrics"})
    if not any(wanted):
        return [Capabilities()]
    look = partial(survey, cache=cache, wanted=wanted, patience=patience)
    asked = (look(address, identity=identity) for address, identity in addresses)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    found = [answer for answer in answers if isinstance(answer, Capabilities)]
    # A server that is down may come back while the others work; one that refuses the key will not.
    fatal = [one for one in errors if not isinstance(one, ModelCallError) or one.kind not in _PASSING_KINDS]
    if fatal or not found:
        raise (fatal or errors)[0]
    return found


def _weakest(found: Sequence[Capabilities]) -> Capabilities:
    """Return what all servers of a model can do."""
    if len(found) == 1:
        return found[0]
    changes: dict[str, bool | int | None] = {}
    for name in _WEAKEST:
        answers = {getattr(one, name) for one in found}
        changes[name] = False if False in answers else None if None in answers else True
    limits = [one.max_context for one in found if one.max_context is not None]
    return found[0].model_copy(update={**changes, "max_context": min(limits, default=None)})


def patience_of(settings: Settings, tell: Callable[[str], None]) -> Patience:
    """Return how a run's first look at its endpoints waits: as its calls do."""
    return Patience(settings.max_outage_s, settings.max_retries, settings.retry_wait_s, tell)


def fit_client(client: ModelClient, capabilities: Capabilities | None) -> ModelClient:
    """Return the client with what its settings leave open decided: the endpoint, the prompt's form, the context."""
    settings, known = client.settings, capabilities or Capabilities()
    is_flat = known.has_chat is False if settings.endpoint == "auto" else settings.endpoint == "completions"
    has_headings = is_flat if settings.prompt_format == "auto" else settings.prompt_format == "flat"
    return replace(
        client,
        endpoint="completions" if is_flat else "chat",
        prompt_format="flat" if has_headings else "chat",
        window=_open_window(client, known),
    )


def _open_window(client: ModelClient, known: Capabilities) -> ContextWindow | None:
    address = client.replicas[0].address
    if known.max_context is None or address is None:
        return None
    return ContextWindow(known.max_context, _TokenCounter(address, known.counts_tokens).count)


class _TokenCounter:
    """Counts prompts where the model is served."""

    def __init__(self, address: Address, dialect: TokenDialect | None) -> None:
        self._address = address
        self._dialect = dialect
        self._wires = PerLoop(self._open)

    async def count(self, request: Request) -> int | None:
        """Return the number of prompt tokens of a request."""
        from drpo_graph.models.token_counts import count_tokens  # Loads the client library.

        prompt: Sequence[Message] | str = request.messages
        if request.endpoint == "completions":
            prompt = join_messages(request.messages, is_structured=request.schema is not None)
        return await count_tokens(self._wires.get(), prompt, dialect=self._dialect)

    def _open(self) -> "Wire":
        from drpo_graph.models.http_json import Wire

        return Wire(self._address, timeout_s=_COUNT_TIMEOUT_S)


def make_learned(stored: Mapping[str, JsonValue] | None, capabilities: Capabilities | None) -> Learned:
    """Return what is known of a model's server: what the run has learnt from refusals, else what the probe found."""
    if stored is not None:
        with suppress(ValidationError):  # What is damaged says nothing: it is learnt anew.
            return Learned.model_validate(stored)
    known = capabilities or Capabilities()
    return Learned(
        rung=LADDER.index(known.tried_rung),
        doubted=LADDER.index(known.first_rung),
        merges_system=known.has_system_role is False,
        ignores_n=known.has_n is False,
        terms=known.terms,
        # Whether it tells probabilities shows at the first critique, which warns when it does not.
    )
