"""What a run must know of an endpoint before its first call, by two requests at once; its own calls tell the rest."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from pydantic import JsonValue

from drpo_graph.models.capabilities import PROBE_TEXT, Address, Capabilities, CapabilityCache, TokenDialect
from drpo_graph.models.failures import CallFailure, is_without_chat
from drpo_graph.models.http_json import Answer, Wire
from drpo_graph.models.patience import MIN_ANNOUNCED_S, NO_PATIENCE, Patience
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.probing.listing import SERVER_BY_OWNER, Listing, read_listing, read_props
from drpo_graph.models.probing.probe import is_of_no_use, outlasts, unusable
from drpo_graph.models.terms import NO_TERMS
from drpo_graph.stop import SingleFlight, note_seen

_TIMEOUT_S = 60.0
_LIST_TIMEOUT_S = 20.0
"""Longest wait for a list of models: it is ready where it is, and a run can do without."""
_MOST_TOKENS = 16
_SYSTEM_PROMPT = "Answer as briefly as you can. " * 40
_MIN_PROMPT_TOKENS = 150
"""What a request with this system prompt has at least; without it, the rest has less in every template."""

_QUESTION = f"{PROBE_TEXT} this request finds out what the server can do. Say hello in one word."
_DIALECTS: dict[str, TokenDialect] = {"vllm": "vllm", "llama.cpp": "llama.cpp"}


class Wanted(NamedTuple):
    """What a run needs to know of a model before it calls it."""

    has_chat: bool = True
    """Whether it takes chats with a system prompt: nothing that the search does would show that it reads none."""
    has_context: bool = True
    """How long its context is."""


async def survey(
    address: Address,
    *,
    identity: str,
    cache: CapabilityCache | None,
    wanted: Wanted = Wanted(),  # noqa: B008  # Immutable.
    timeout_s: float = _TIMEOUT_S,
    patience: Patience = NO_PATIENCE,
) -> Capabilities:
    """Return what is remembered of an endpoint and still holds, else what a look at it tells.

    Callers that ask for the same at the same time share the requests, and those for several models of one server its
    list of models.

    Args:
        address: The endpoint.
        identity: Names what is served there: the base URL, or something lasting where the port changes.
        cache: Where it is remembered; nowhere when absent.
        wanted: What the caller needs to know.
        timeout_s: Longest wait for one reply.
        patience: How limits are waited out, and who is told of waits: of callers at the same time, that of the first
            counts, but each is told of silence.

    Raises:
        ModelCallError: the endpoint cannot be used at all (wrong key, unknown model, unreachable), or limits the rate
            for longer than is waited for.
    """
    silence = f"{address.place} has not answered for {MIN_ANNOUNCED_S:g} s: the run waits to learn what it can do"
    notice = asyncio.get_running_loop().call_later(MIN_ANNOUNCED_S, patience.tell, silence)

    def tell(message: str) -> None:
        notice.cancel()  # It has answered.
        patience.tell(message)

    wire = partial(Wire, address, timeout_s=timeout_s, patience=replace(patience, tell=tell))
    find = partial(_recall_or_look, wire, identity, cache=cache, wanted=wanted)
    try:
        return await _surveys.get().share((address, identity, wanted), find)
    finally:
        notice.cancel()


_surveys: PerLoop[SingleFlight[tuple[Address, str, Wanted], Capabilities]] = PerLoop(SingleFlight)
_lists: PerLoop[SingleFlight[tuple[str, str], Answer]] = PerLoop(SingleFlight)


async def _recall_or_look(
    open_wire: Callable[[], Wire], identity: str, *, cache: CapabilityCache | None, wanted: Wanted
) -> Capabilities:
    wire = open_wire()
    address = wire.address
    # Before anything is waited for: those who look at a server at the same time are to share its list.
    listing = asyncio.create_task(_list_models(wire)) if wanted.has_context else None
    if listing is not None:
        listing.add_done_callback(note_seen)
    # Files are read and written in a thread: LangGraph's server fails a graph that blocks its event loop.
    remembered = await asyncio.to_thread(cache.get, identity, address.name) if cache else None
    if remembered is not None and remembered.has_chat is None and wanted.has_chat:
        remembered = None
    if remembered is not None and (listing is None or is_current(await listing, remembered, name=address.name)):
        return remembered
    found = await _look(wire, wanted, listing)
    if cache is not None:
        await asyncio.to_thread(cache.put, identity, address.name, capabilities=found)
    return found


def is_current(answer: Answer, cached: Capabilities, *, name: str) -> bool:
    """Return whether a server's list of models still tells of one what it did; true where it tells nothing."""
    if isinstance(answer, CallFailure):
        # That a server is gone, or wants another key now, is for a new look to report.
        return answer.kind not in ("connection", "timeout", "http_401", "http_403")
    listing = read_listing(answer, name)
    if cached.is_listed and not listing.is_listed:
        return False
    return listing.max_context is None or listing.max_context == cached.max_context


async def _list_models(wire: Wire) -> Answer:
    """Return the server's list of models; those who ask for it at the same time get one answer."""
    address = wire.address
    return await _lists.get().share(
        (address.base_url, address.api_key), partial(wire.get, "/models", timeout_s=_LIST_TIMEOUT_S)
    )


async def _look(wire: Wire, wanted: Wanted, listed: "asyncio.Task[Answer] | None") -> Capabilities:
    about, chat = await asyncio.gather(
        _know_nothing() if listed is None else _describe(wire, listed),
        _try_chat(wire) if wanted.has_chat else _no_chat(),
    )
    listing, facts = about
    if chat is None and len(listing.names) > 1 and not listing.is_listed:
        # A server of one model may take any name for it. One of several hardly does: better told now than after calls.
        chat = await _try_chat(wire)
    if isinstance(chat, CallFailure) and outlasts(chat, wire):
        raise unusable(wire.address, chat, listing=listing)
    if isinstance(chat, CallFailure) and (is_of_no_use(chat) or chat.kind == "http_404"):
        if not listing.names:
            listing = read_listing(await _list_models(wire), wire.address.name)
        # A server that has neither chats nor a list of models is no server of models.
        if is_of_no_use(chat) or not listing.names:
            raise unusable(wire.address, chat, listing=listing)
    return Capabilities.model_validate({**facts, **_judge_chat(chat)})


async def _know_nothing() -> tuple[Listing, dict[str, JsonValue]]:
    return Listing(), {}


async def _no_chat() -> None:
    return None


async def _describe(wire: Wire, listed: "asyncio.Task[Answer]") -> tuple[Listing, dict[str, JsonValue]]:
    listing = read_listing(await listed, wire.address.name)
    server, max_context = SERVER_BY_OWNER.get(listing.owner, ""), listing.max_context
    if server == "llama.cpp" and max_context is None:
        max_context, _ = read_props(await wire.get(f"{wire.address.root}/props"))
    return listing, {
        "server": server,
        "is_listed": listing.is_listed,
        "max_context": max_context,
        "counts_tokens": _DIALECTS.get(server),
    }


async def _try_chat(wire: Wire) -> Answer:
    turns: list[JsonValue] = [
        {"role": "system", "content": _SYSTEM_PROMPT},
        {"role": "user", "content": _QUESTION},
    ]
    body: dict[str, JsonValue] = {"model": wire.address.name, "messages": turns, "max_completion_tokens": _MOST_TOKENS}
    return await wire.post("/chat/completions", body)


def _judge_chat(answer: Answer | None) -> dict[str, object]:
    """Return what the answer to a chat tells; a refusal of one thing tells of that, and that there are chats."""
    if answer is None:
        return {}
    if not isinstance(answer, CallFailure):
        usage = answer.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        is_counted = isinstance(count, int) and count > 0
        return {"has_chat": True, "has_system_role": count >= _MIN_PROMPT_TOKENS if is_counted else None}  # type: ignore[operator]
    if is_without_chat(answer):
        return {"has_chat": False, "has_system_role": False}
    if answer.remedy == "merge_system":
        return {"has_chat": True, "has_system_role": False}
    if answer.remedy == "adapt":
        return {"has_chat": True, "terms": NO_TERMS.after(answer.refused)}
    return {}
