"""An app in the base model's place: it answers under several prompts, of which one is optimised at a time."""

import hashlib
import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from drpo_graph.errors import ReplyError
from drpo_graph.parts.identity import name_of, stored_name
from drpo_graph.parts.own_answers import take_response
from drpo_graph.parts.own_code import call_own
from drpo_graph.parts.trajectories import Messages
from drpo_graph.records import Query

STORED_RESPONSE = "responses/"
"""Begins the key of a response that is no model call: it stands among the archive's responses, not in the ledger."""

AppResponse: TypeAlias = str | Messages | Mapping[str, object]
"""A text; or an agent's messages, alone or in a state under ``messages``: LangChain's, or dicts in OpenAI's form. What
follows the last one of the user is the response, tool calls and their results too (``parts/trajectories.py``)."""


class PromptResponder(Protocol):
    """Answers a query under the prompt that is optimised."""

    def respond(self, prompt: str, query: Query) -> Awaitable[AppResponse] | AppResponse:
        """Return the response; raise ``ReplyError`` to leave the query without one, with that reason."""
        ...


class Responder(Protocol):
    """An app with several named prompts."""

    def __call__(self, prompts: Mapping[str, str], query: Query) -> Awaitable[AppResponse] | AppResponse:
        """Return the app's response under these prompts; raise ``ReplyError`` when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class OnePromptOfApp:
    """An app as one of its prompts sees it: the others stay as they are."""

    STORED_NAME: ClassVar[str] = "drpo_graph.responders.OnePromptOfApp"

    app: Responder
    name: str
    prompts: Mapping[str, str]
    """All prompts by name; that of ``name`` is replaced by the one that is tried."""

    @property
    def identity(self) -> str:
        """The prompts that stay, and which one does not: a part of the run's fingerprint."""
        fixed = {name: prompt for name, prompt in self.prompts.items() if name != self.name}
        return json.dumps([self.name, fixed], sort_keys=True)

    def prompts_with(self, prompt: str) -> dict[str, str]:
        """Return the app's prompts with this one in its place."""
        return {**self.prompts, self.name: prompt}

    def respond(self, prompt: str, query: Query) -> Awaitable[AppResponse] | AppResponse:
        """Return the app's response with this prompt in its place."""
        return self.app(self.prompts_with(prompt), query)


def identify_responder(responder: PromptResponder) -> str:
    """Return what tells one app from another: its class, and its ``identity`` where it has one, a text."""
    identity = getattr(responder, "identity", None)
    name = stored_name(type(responder))
    if isinstance(responder, OnePromptOfApp):
        name += f"/{name_of(responder.app)}"
    return name if identity is None else f"{name}\0{hashlib.sha256(str(identity).encode()).hexdigest()}"


async def ask_responder(responder: PromptResponder, prompt: str, query: Query, *, timeout_s: float) -> str:
    """Return a responder's answer as text.

    Raises:
        ReplyError: it gave none, a blank one, or none in time.
        PartError: what it gave is no response.
    """
    called = f"query {query.id!r}: the app"
    if isinstance(responder, OnePromptOfApp):
        # Itself: whether it is asynchronous decides where it runs.
        app, prompts = responder.app, responder.prompts_with(prompt)
        said: object = await call_own(app, prompts, query, called=called, timeout_s=timeout_s)
    else:
        said = await call_own(responder.respond, prompt, query, called=called, timeout_s=timeout_s)
    response = take_response(said, called=called)
    if not response.strip():
        raise ReplyError(f"query {query.id!r}: the app's response is blank", kind="empty")
    return response


def response_key(prompt: str, query: Query) -> str:
    """Return the key that a response is stored under: a prompt that is kept is not tried again on the same query."""
    return f"{hashlib.sha256(prompt.encode()).hexdigest()}/{query.id}"
