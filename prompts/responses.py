"""The request for a better ICL response: a template of its own, so that it is no part of a search's fingerprint."""

import hashlib
from functools import cache
from importlib.resources import files
from string import Template

from drpo_graph.prompts.library import render_rollout
from drpo_graph.prompts.messages import Message
from drpo_graph.records import Query, Rollout

_FILE = "rewrite_response.md"


def render_rewrite_response(query: Query, rollout: Rollout) -> list[Message]:
    """Return the request that asks for a better response, from one that was scored."""
    content = Template(_read()).substitute(example=render_rollout(1, query, rollout))
    return [{"role": "user", "content": content}]


def response_prompt_fingerprint() -> str:
    """Return the SHA-256 of the template."""
    return hashlib.sha256(_read().encode()).hexdigest()


@cache
def _read() -> str:
    return files("drpo_graph.prompts").joinpath(_FILE).read_text(encoding="utf-8")
