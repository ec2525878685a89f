"""Find out what an OpenAI-compatible endpoint can do with one model, by a dozen small requests."""

import asyncio
import re

from pydantic import JsonValue

from drpo_graph.errors import ModelCallError
from drpo_graph.models.capabilities import PROBE_TEXT, Address, Capabilities, TokenDialect
from drpo_graph.models.failures import CallFailure, is_without_chat
from drpo_graph.models.http_json import Wire
from drpo_graph.models.patience import NO_PATIENCE, Patience
from drpo_graph.models.probing.listing import SERVER_BY_OWNER, Listing, read_listing, read_props
from drpo_graph.models.probing.replies import ProbeReply
from drpo_graph.models.probing.requests import Asker, ask_all
from drpo_graph.models.token_counts import read_count
from drpo_graph.safety.texts import shorten

_TIMEOUT_S = 60.0
_MAX_NAMED = 5

_NO_MODEL_WORDS = re.compile(
    r"model.{0,100}(does ?n[o']t exist|not exist|not found|not available|not served|is unknown)"
    r"|(unknown|invalid|no such) model",
    re.I,
)


async def probe_endpoint(
    address: Address, *, timeout_s: float = _TIMEOUT_S, patience: Patience = NO_PATIENCE
) -> Capabilities:
    """Return what an endpoint can do with one model.

    A request that fails for the moment leaves its own answer unknown, and no other.

    Args:
        address: The endpoint.
        timeout_s: Longest wait for one reply.
        patience: How limits are waited out, and who is told of it.

    Raises:
        ModelCallError: the endpoint cannot be used at all (wrong key, unknown model, unreachable), or limits the rate
            for longer than is waited for.
    """
    wire = Wire(address, timeout_s=timeout_s, patience=patience)
    models = await wire.get("/models")
    if isinstance(models, CallFailure) and models.kind in ("connection", "timeout"):
        raise unusable(address, models, listing=Listing())
    listing = read_listing(models, address.name)
    asker = Asker(wire)
    await _find_route(asker, listing)
    about, found = await asyncio.gather(_ask_about(wire, listing), ask_all(asker))
    fields: dict[str, object] = {
        **about,
        **found,
        "is_listed": listing.is_listed,
        "has_chat": asker.has_chat,
        "terms": asker.terms,
        "unproven": tuple(sorted(asker.unproven)),
    }
    return Capabilities.model_validate(fields)


async def _find_route(asker: Asker, listing: Listing) -> None:
    """Ask a plain question in a chat; where there is none, the asker asks for text completions from here on.

    Raises:
        ModelCallError: neither route answers, or will.
    """
    address = asker.wire.address
    chat = await asker.ask_plainly()
    if isinstance(chat, ProbeReply):
        return
    if is_of_no_use(chat) or outlasts(chat, asker.wire):
        raise unusable(address, chat, listing=listing)
    if not is_without_chat(chat):
        return
    asker.is_flat = True
    flat = await asker.ask_plainly()
    if isinstance(flat, CallFailure) and flat.remedy != "retry":
        raise unusable(address, flat, listing=listing)


async def _ask_about(wire: Wire, listing: Listing) -> dict[str, JsonValue]:
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
    max_context, build = read_props(props)
    server = SERVER_BY_OWNER.get(listing.owner, "llama.cpp" if max_context else "")
    stated = version.get("version") if isinstance(version, dict) and server else None
    release = stated if isinstance(stated, str) else build
    return {
        "server": shorten(f"{server} {release}", 60).strip(),
        "max_context": listing.max_context or max_context,
        "counts_tokens": dialect,
    }


def is_of_no_use(failure: CallFailure) -> bool:
    """Return whether a chat fails in a way that leaves nothing to try at the endpoint."""
    if failure.kind in ("connection", "timeout") or _is_unknown_model(failure):
        return True
    return failure.remedy == "stop" and not is_without_chat(failure)


def outlasts(failure: CallFailure, wire: Wire) -> bool:
    """Return whether a limit was waited for, and lasts longer."""
    return failure.is_limit and wire.patience.max_outage_s > 0


def _is_unknown_model(failure: CallFailure) -> bool:
    is_about_request = failure.kind in ("http_400", "http_404", "http_422")
    return is_about_request and bool(_NO_MODEL_WORDS.search(failure.message))


def unusable(address: Address, failure: CallFailure, *, listing: Listing) -> ModelCallError:
    """Return the error for an endpoint that cannot be used."""
    said = failure.message if failure.message.endswith((".", "!", "?")) else f"{failure.message}."
    kind = failure.kind
    if kind == "connection":
        what = f"the server cannot be reached: {said} Check that it runs and the URL is right."
    elif kind == "timeout":
        what = f"the server gave no reply in time: {said} Check that it is not overloaded and the URL is right."
    elif kind in ("http_401", "http_403"):
        what = f"the server refused the key ({kind}): {said} {address.key_advice}"
    elif failure.is_limit:
        what = (
            f"the server limits the rate for longer than is waited for: {said} Try again later, or give --max-outage."
        )
    elif kind == "quota":
        what = f"the account has no credit left: {said} Top it up, or use another key."
    elif kind == "http_404" or _is_unknown_model(failure):
        what = f"the server does not serve it ({kind}): {said} {_describe_served(listing)}"
    else:
        what = f"the server refused a plain request ({kind}): {said} Check the model's name and the base URL."
    kind = "unreachable" if kind == "connection" else kind
    return ModelCallError(f"The model {address.name!r} at {address.place}: {what}", kind=kind, role="")


def _describe_served(listing: Listing) -> str:
    names = [shorten(name, 80) for name in listing.names if name]
    if not names or listing.is_listed:
        return "Check the model's name and the base URL, which usually ends in /v1."
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"Served there: {', '.join(names[:_MAX_NAMED])}{more}. Check the model's name."
