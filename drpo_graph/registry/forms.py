"""A registered prompt as a file for other programs: plain text, JSON, a LangChain template, LangSmith's prompt hub."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Final, Literal

from drpo_graph.evidence import NOT_COMPARED
from drpo_graph.registry.prompt import RegisteredPrompt
from drpo_graph.safety.terminal import inert_json

PromptForm = Literal["txt", "json", "template", "hub"]

_MAX_HANDLE: Final = 100
_NUM_MARK: Final = 8
_NO_HANDLE: Final = re.compile(r"[^a-z0-9_-]+")


def render_prompt(prompt: RegisteredPrompt, form: PromptForm) -> str:
    """Return a prompt in a form that other programs read, ending with a line break.

    Args:
        form: ``txt``, the prompt alone; ``json``, with its provenance; ``template``, what ``langchain_core.load`` reads
            as a ``ChatPromptTemplate``; ``hub``, the arguments of LangSmith's ``push_prompt``.
    """
    if form == "txt":
        return f"{prompt.system_prompt}\n"
    if form == "json":
        return _to_json(prompt.model_dump(mode="json"))
    from langchain_core.load import dumpd  # Slow to load.

    manifest: dict[str, object] = dumpd(prompt.to_chat_prompt_template())
    return _to_json(manifest if form == "template" else _describe_for_hub(prompt, manifest))


def describe_provenance(prompt: RegisteredPrompt) -> Iterator[str]:
    """Yield what is known of where a prompt comes from and what it gained, a line each."""
    yield f"model: {prompt.model}"
    for name in ("router", "source", "run", "date", "licence", "placeholders"):
        if (value := getattr(prompt, name)) is not None:
            yield f"{name}: {value}"
    if prompt.reward is not None:
        start = f" (initial prompt: {prompt.initial_reward:.2f})" if prompt.initial_reward is not None else ""
        if prompt.run is not None and not start:
            start = f" ({NOT_COMPARED})"
        yield f"reward: {prompt.reward:.2f}{start}"
    if prompt.difference is not None:
        bounds = ""
        if prompt.interval_low is not None and prompt.interval_high is not None:
            bounds = f" [{prompt.interval_low:+.2f}, {prompt.interval_high:+.2f}]"
        word = "significant" if prompt.is_significant else "not significant"
        yield f"gain on held-out queries: {prompt.difference:+.2f}{bounds}, {word}"


def _describe_for_hub(prompt: RegisteredPrompt, manifest: dict[str, object]) -> dict[str, object]:
    """Return what LangSmith's hub takes: the manifest is what it keeps, the rest stands beside it."""
    return {
        "prompt_identifier": _make_handle(prompt.model),
        "object": manifest,
        "description": f"System prompt of {prompt.model}, optimised with DRPO.",
        "readme": "\n".join(f"- {line}" for line in describe_provenance(prompt)),
        "tags": ["drpo"],
        "is_public": False,
    }


def _make_handle(model: str) -> str:
    """Return a name that the hub accepts: small Latin letters, digits, ``-`` and ``_``, beginning with a letter.

    Where that loses something, a hash keeps the names of different models apart.
    """
    name = _NO_HANDLE.sub("-", model.lower()).strip("-_")
    handle = f"drpo-{name}"
    if name == model and len(handle) <= _MAX_HANDLE:
        return handle
    mark = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:_NUM_MARK]
    return f"{handle[: _MAX_HANDLE - _NUM_MARK - 1].rstrip('-_')}-{mark}"


def _to_json(value: object) -> str:
    return f"{inert_json(json.dumps(value, indent=2, ensure_ascii=False))}\n"
