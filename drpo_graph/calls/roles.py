"""The four roles' models, ready to be asked, and how their responses are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from drpo_graph.calls.channel import CallChannel
from drpo_graph.calls.ladder import Exchange, Sample
from drpo_graph.errors import FailureKind, ReplyError
from drpo_graph.models.answers import Said, read_answer
from drpo_graph.models.request import Choice, ReplySchema, Request
from drpo_graph.models.token_scores import MAX_TOP_LOGPROBS
from drpo_graph.prompts.flat import REPLY_STOPS, merge_stops
from drpo_graph.prompts.library import Message, PromptLibrary, ResponseFormat
from drpo_graph.safety.texts import shorten

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RoleModel:
    """A role's model, ready to be asked. Replacement components get these and so share ledger, limits and retries."""

    channel: CallChannel
    prompts: PromptLibrary

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        parse: Callable[[str], T],
        soften: Callable[[T, Choice], T] | None = None,
        schema: ReplySchema | None = None,
        num_samples: int = 1,
        seed: int | None = None,
    ) -> list[Sample[T]]:
        """Return ``num_samples`` samples of a structured reply, each parsed or with its reason.

        A reply that cannot be used is asked for again (two tries more by default), then repaired once: the model is
        shown its reply and what was wrong with it. One bad sample never costs the others.

        Args:
            messages: The request.
            parse: Turns a reply's text into a value; raises ``ReplyError`` when it cannot.
            soften: Refines a value by the probabilities of the reply's digits, which are asked for then. A choice
                without them, because the server tells none, leaves the value as it is.
            schema: The JSON object the reply should be, for servers that can enforce it.
            num_samples: Samples wanted; one request where the server honours ``n``.
            seed: Sampling seed sent to the server; further requests derive theirs from it.

        Raises:
            ModelCallError: the endpoint cannot be used at all (wrong key, unknown model, unreachable).
            TooManyFailuresError: too many of the role's samples have failed lately.
            RunInterruptedError: the run was asked to stop.
        """

        def read(choice: Choice) -> T:
            value = parse(_usable_text(choice))
            return value if soften is None else soften(value, choice)

        request = replace(
            self._request(messages, schema=schema, stops=REPLY_STOPS if schema is not None and self._is_flat else ()),
            seed=seed,
            top_logprobs=0 if soften is None else MAX_TOP_LOGPROBS,
        )
        return await Exchange(self.channel, request, prompts=self.prompts, read=read).run(num_samples)

    async def respond(
        self, messages: Sequence[Message], *, accepts_empty: bool = False, seed: int | None = None
    ) -> Sample[str]:
        """Return the base model's free-text response: a refusal or a truncated text is a response too.

        Args:
            messages: What :attr:`response_format` renders.
            accepts_empty: Whether an empty response is one.
            seed: Sampling seed sent to the server: the same request with another seed is another call.

        Raises:
            ModelCallError: the endpoint cannot be used at all.
            RunInterruptedError: the run was asked to stop.
        """
        form = self.response_format
        exchange = Exchange(
            self.channel,
            replace(self._request(messages, stops=form.stops), seed=seed),
            prompts=self.prompts,
            read=lambda choice: response_text(choice, form, accepts_empty=accepts_empty),
        )
        (sample,) = await exchange.run(1, may_repair=False)
        return sample

    @property
    def response_format(self) -> ResponseFormat:
        """How this model is asked for a free-text response, and how that is read."""
        return self.prompts.response_format(self.channel.client.prompt_format)

    @property
    def _is_flat(self) -> bool:
        return self.channel.client.endpoint == "completions"

    def _request(
        self, messages: Sequence[Message], *, schema: ReplySchema | None = None, stops: Sequence[str]
    ) -> Request:
        role = self.channel.client.settings
        return Request(
            messages=list(messages),
            temperature=role.temperature,
            top_p=role.top_p,
            reasoning_effort=role.reasoning_effort,
            max_tokens=role.max_tokens,
            stop=merge_stops(role.stop, stops),
            mode=role.reply_mode if schema is not None else "text",
            schema=schema,
            extra_body=role.extra_body,
            endpoint=self.channel.client.endpoint,
        )


@dataclass(frozen=True, slots=True)
class Models:
    """The four roles' models of one run."""

    base: RoleModel
    metrics: RoleModel
    critic: RoleModel
    optimizer: RoleModel


def _usable_text(choice: Choice) -> str:
    """Return the answer of a structured reply.

    Raises:
        ReplyError: it is a refusal, empty, or cut off: what looks whole then may be a draft.
    """
    if choice.refusal or choice.finish_reason == "content_filter":
        raise ReplyError(f"the model refused: {shorten(choice.refusal or choice.text)!r}", kind="refused")
    said = _read_said(choice, is_structured=True)
    if choice.is_cut:
        raise ReplyError("the token limit cut the reply off: expected a shorter one", kind="truncated")
    if not said.text.strip():
        raise ReplyError("the reply is empty", kind="empty")
    return said.text


def _read_said(choice: Choice, *, is_structured: bool = False) -> Said:
    """Return what a reply says.

    Raises:
        ReplyError: it ended while the model was thinking.
    """
    said = read_answer(choice.text, is_structured=is_structured)
    if said.is_thinking:
        kind: FailureKind = "truncated" if choice.is_cut else "empty"
        raise ReplyError("the reply ended before the model's thinking did: there is no answer", kind=kind)
    return said


def response_text(choice: Choice, form: ResponseFormat, *, accepts_empty: bool = False) -> str:
    """Return a base model's response: its text as its format reads it, or its refusal.

    The ledger keeps the text as it came, so that a resumed run reads the same response in it.

    Raises:
        ReplyError: it is empty and may not be, was kept back, or holds the model's thinking alone.
    """
    text = (choice.refusal or form.clean(_read_said(choice).text, is_cut=choice.is_cut)).strip()
    if not text and choice.finish_reason == "content_filter":
        # No answer of the model's, not even an empty one.
        raise ReplyError("a content filter kept the response back", kind="refused")
    if not text and not accepts_empty:
        raise ReplyError("the response is empty", kind="empty")
    return text
