"""Find out what an OpenAI-compatible endpoint can do with one model, by a dozen small requests."""

import asyncio
import re
from functools import partial
from typing import NamedTuple

from pydantic import JsonValue

from drpo_graph.errors import ModelCallError
from drpo_graph.models.capabilities import PROBE_TEXT, Address, Capabilities, CapabilityCache, TokenDialect
from drpo_graph.models.failures import CallFailure
from drpo_graph.models.http_json import Answer, Wire
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.probing.replies import ProbeReply
from drpo_graph.models.probing.requests import Asker, ask_all
from drpo_graph.models.token_counts import read_count
from drpo_graph.safety.texts import shorten
from drpo_graph.stop import SingleFlight

_TIMEOUT_S = 60.0
_MAX_NAMED = 5
_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
_SERVER_BY_OWNER = {"vllm": "vllm", "llamacpp": "llama.cpp", "sglang": "sglang"}

_NO_CHAT_WORDS = re.compile(
    r"chat template|not a chat model|not support.{0,20}chat|chat completions?.{0,30}not support", re.I
)
_NO_MODEL_WORDS = re.compile(
    r"model.{0,100}(does ?n[o']t exist|not exist|not found|not available|not served|is unknown)"
    r"|(unknown|invalid|no such) model",
    re.I,
)


class _Listing(NamedTuple):
    """What the server's list of models says."""

    names: tuple[str, ...] = ()
    is_listed: bool = False
    owner: str = ""
    max_context: int | None = None
    """Of the model as it is served, where the list tells."""


async def capabilities_of(
    address: Address,
    *,
    identity: str,
    cache: CapabilityCache | None,
    timeout_s: float = _TIMEOUT_S,
) -> Capabilities:
    """Return what is remembered of an endpoint and still holds, else what a probe finds.

    Callers that ask for the same at the same time share one probe.

    Args:
        address: The endpoint.
        identity: Names what is served there: the base URL, or something lasting where the port changes.
        cache: Where it is remembered; nowhere when absent.
        timeout_s: Longest wait for one reply.

    Raises:
        ModelCallError: the endpoint cannot be used at all (wrong key, unknown model, unreachable).
    """
    find = partial(_recall_or_probe, address, identity, cache=cache, timeout_s=timeout_s)
    return await _probes.get().share((address, identity), find)


_probes: PerLoop[SingleFlight[tuple[Address, str], Capabilities]] = PerLoop(SingleFlight)


async def _recall_or_probe(
    address: Address,
    identity: str,
    *,
    cache: CapabilityCache | None,
    timeout_s: float,
) -> Capabilities:
    # Files are read and written in a thread: LangGraph's server fails a graph that blocks its event loop.
    remembered = await asyncio.to_thread(cache.get, identity, address.name) if cache else None
    if remembered is not None and await is_current(address, remembered, timeout_s=timeout_s):
        return remembered
    found = await probe_endpoint(address, timeout_s=timeout_s)
    if cache is not None:
        await asyncio.to_thread(cache.put, identity, address.name, capabilities=found)
    return found


async def is_current(address: Address, cached: Capabilities, *, timeout_s: float = _TIMEOUT_S) -> bool:
    """Return whether the server still lists the model as it did, by one request; true where it tells nothing."""
    answer = await Wire(address, timeout_s=timeout_s).get("/models")
    if isinstance(answer, CallFailure):
        # That a server is gone, or wants another key now, is for a probe to report.
        return answer.kind not in ("connection", "timeout", "http_401", "http_403")
    listing = _read_listing(answer, address.name)
    if cached.is_listed and not listing.is_listed:
        return False
    return listing.max_context is None or listing.max_context == cached.max_context


async def probe_endpoint(address: Address, *, timeout_s: float = _TIMEOUT_S) -> Capabilities:
    """Return what an endpoint can do with one model.

    A request that fails for the moment leaves its own answer unknown, and no other.

    Raises:
        ModelCallError: the endpoint cannot be used at all (wrong key, unknown model, unreachable).
    """
    wire = Wire(address, timeout_s=timeout_s)
    models = await wire.get("/models")
    if isinstance(models, CallFailure) and models.kind in ("connection", "timeout"):
        raise _unusable(address, models, listing=_Listing())
    listing = _read_listing(models, address.name)
    asker = Asker(wire)
    await _find_route(asker, listing)
    about, found = await asyncio.gather(_ask_about(wire, listing), ask_all(asker))
    fields: dict[str, object] = {
        **about,
        **found,
        "is_listed": listing.is_listed,
        "has_chat": asker.has_chat,
        "terms": asker.terms,
    }
    return Capabilities.model_validate(fields)


async def _find_route(asker: Asker, listing: _Listing) -> None:
    """Ask a plain question in a chat; where there is none, the asker asks for text completions from here on.

    Raises:
        ModelCallError: neither route answers, or will.
    """
    address = asker.wire.address
    chat = await asker.ask_plainly()
    if isinstance(chat, ProbeReply):
        return
    if chat.kind in ("connection", "timeout") or _is_unknown_model(chat):
        raise _unusable(address, chat, listing=listing)
    is_route_missing = chat.kind in ("http_404", "http_405", "http_501")
    if not is_route_missing and not _NO_CHAT_WORDS.search(chat.message):
        if chat.remedy == "stop":
            raise _unusable(address, chat, listing=listing)
        return
    asker.is_flat = True
    flat = await asker.ask_plainly()
    if isinstance(flat, CallFailure) and flat.remedy != "retry":
        raise _unusable(address, flat, listing=listing)


async def _ask_about(wire: Wire, listing: _Listing) -> dict[str, JsonValue]:
    """Return the capabilities that the server's routes beside OpenAI's tell."""
    root, text = wire.address.root, f"{PROBE_TEXT} count me"
    version, props, counted = await asyncio.gather(
        wire.get(f"{root}/version"),
        wire.get(f"{root}/props"),
        # One body for both dialects: each server overlooks the field of the other.
        wire.post(f"{root}/tokenize", {"model": wire.address.name, "prompt": text, "content": text}),
    )
    dialect: TokenDialect | None = None
    if read_count(counted):
        dialect = "vllm" if isinstance(counted, dict) and "count" in counted else "llama.cpp"
    max_context, build = _read_props(props)
    server = _SERVER_BY_OWNER.get(listing.owner, "llama.cpp" if max_context else "")
    stated = version.get("version") if isinstance(version, dict) and server else None
    release = stated if isinstance(stated, str) else build
    return {
        "server": shorten(f"{server} {release}", 60).strip(),
        "max_context": listing.max_context or max_context,
        "counts_tokens": dialect,
    }


def _read_props(props: Answer) -> tuple[int | None, str]:
    """Return what llama.cpp says of itself: the context of one request, and its build."""
    settings = None if isinstance(props, CallFailure) else props.get("default_generation_settings")
    if isinstance(props, CallFailure) or not isinstance(settings, dict):
        return None, ""
    num_tokens, build = settings.get("n_ctx"), props.get("build_info")
    is_named = isinstance(build, str) and "unknown" not in build
    return num_tokens if isinstance(num_tokens, int) else None, str(build) if is_named else ""


def _read_listing(answer: Answer, name: str) -> _Listing:
    entries = None if isinstance(answer, CallFailure) else answer.get("data")
    if not isinstance(entries, list):
        return _Listing()
    listed = [one for one in entries if isinstance(one, dict)]
    names = tuple(str(one.get("id", "")) for one in listed)
    own = [one for one, its_name in zip(listed, names, strict=True) if its_name == name]
    # A server of one model may take any name for it, as llama.cpp does.
    entry = own[0] if own else listed[0] if len(listed) == 1 else {}
    limits = [limit for field in _CONTEXT_FIELDS if isinstance(limit := entry.get(field), int)]
    return _Listing(names, bool(own), str(entry.get("owned_by", "")), limits[0] if limits else None)


def _is_unknown_model(failure: CallFailure) -> bool:
    is_about_request = failure.kind in ("http_400", "http_404", "http_422")
    return is_about_request and bool(_NO_MODEL_WORDS.search(failure.message))


def _unusable(address: Address, failure: CallFailure, *, listing: _Listing) -> ModelCallError:
    said = failure.message if failure.message.endswith((".", "!", "?")) else f"{failure.message}."
    kind = failure.kind
    if kind == "connection":
        what = f"the server cannot be reached: {said} Check that it runs and the URL is right."
    elif kind == "timeout":
        what = f"the server gave no reply in time: {said} Check that it is not overloaded and the URL is right."
    elif kind in ("http_401", "http_403"):
        what = f"the server refused the key ({kind}): {said} Check the API key and its environment variable."
    elif kind == "quota":
        what = f"the account has no credit left: {said} Top it up, or use another key."
    elif kind == "http_404" or _is_unknown_model(failure):
        what = f"the server does not serve it ({kind}): {said} {_describe_served(listing)}"
    else:
        what = f"the server refused a plain request ({kind}): {said} Check the model's name and the base URL."
    kind = "unreachable" if kind == "connection" else kind
    return ModelCallError(f"The model {address.name!r} at {address.place}: {what}", kind=kind, role="")


def _describe_served(listing: _Listing) -> str:
    names = [shorten(name, 80) for name in listing.names if name]
    if not names or listing.is_listed:
        return "Check the model's name and the base URL, which usually ends in /v1."
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"Served there: {', '.join(names[:_MAX_NAMED])}{more}. Check the model's name."
