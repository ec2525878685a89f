"""What a server's own routes say of it and of the model: its list of models, and llama.cpp's properties."""

from typing import NamedTuple

from drpo_graph.models.failures import CallFailure
from drpo_graph.models.http_json import Answer

SERVER_BY_OWNER = {"vllm": "vllm", "llamacpp": "llama.cpp", "sglang": "sglang"}

_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")


class Listing(NamedTuple):
    """What the server's list of models says."""

    names: tuple[str, ...] = ()
    is_listed: bool = False
    owner: str = ""
    max_context: int | None = None
    """Of the model as it is served, where the list tells."""


def read_listing(answer: Answer, name: str) -> Listing:
    """Return what an answer of ``/models`` says of a model."""
    entries = None if isinstance(answer, CallFailure) else answer.get("data")
    if not isinstance(entries, list):
        return Listing()
    listed = [one for one in entries if isinstance(one, dict)]
    names = tuple(str(one.get("id", "")) for one in listed)
    own = [one for one, its_name in zip(listed, names, strict=True) if its_name == name]
    # A server of one model may take any name for it, as llama.cpp does.
    entry = own[0] if own else listed[0] if len(listed) == 1 else {}
    limits = [limit for field in _CONTEXT_FIELDS if isinstance(limit := entry.get(field), int)]
    return Listing(names, bool(own), str(entry.get("owned_by", "")), limits[0] if limits else None)


def read_props(props: Answer) -> tuple[int | None, str]:
    """Return what llama.cpp says of itself: the context of one request, and its build."""
    settings = None if isinstance(props, CallFailure) else props.get("default_generation_settings")
    if isinstance(props, CallFailure) or not isinstance(settings, dict):
        return None, ""
    num_tokens, build = settings.get("n_ctx"), props.get("build_info")
    is_named = isinstance(build, str) and "unknown" not in build
    return num_tokens if isinstance(num_tokens, int) else None, str(build) if is_named else ""
