"""From a question to usable samples, rung by rung: JSON schema, tool call, JSON mode, text, one repair.

A rung that the server refuses is left for good and remembered with the run. A reply that cannot be used is asked for
again, then repaired once; after that the sample has a reason instead of a value.
"""

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

from drpo_graph.calls.channel import CallChannel, RefusedRequestError
from drpo_graph.calls.ledger import CallRecord
from drpo_graph.errors import FailureKind, ReplyError
from drpo_graph.models.answers import read_answer
from drpo_graph.models.failures import OVERFLOW, CallFailure, is_context_overflow
from drpo_graph.models.request import Choice, Request
from drpo_graph.models.token_scores import FEW_TOP_LOGPROBS
from drpo_graph.prompts.flat import REPLY_STOPS, merge_stops
from drpo_graph.prompts.library import Message, PromptLibrary
from drpo_graph.records import Failure

T = TypeVar("T")

LADDER = ("json_schema", "tool", "json", "text")

_MAX_UNUSABLE = 2
"""So many replies in succession confirm a probe that saw nothing of a rung."""

_DIGIT = re.compile("[1-5]")


class Sample(NamedTuple, Generic[T]):
    """One sample of a role's reply: its value, or why there is none."""

    value: T | None
    failure: Failure | None
    key: str | None = None
    """The ledger key of the call it came from."""

    def require(self, what: str) -> T:
        """Return the value; ``what`` begins the message where there is none.

        Raises:
            ReplyError: there is none.
        """
        if self.value is not None:
            return self.value
        detail, kind = (self.failure.detail, self.failure.kind) if self.failure else ("no reply", "empty")
        raise ReplyError(f"{what}: {detail}", kind=kind)


def _is_untold(choice: Choice) -> bool:
    """Return whether a reply has digits, and came without the probabilities of any."""
    return not choice.score_tokens and _DIGIT.search(choice.text) is not None


def derive_seed(seed: int | None, *parts: object) -> int | None:
    """Return a further request's sampling seed, or ``None`` when the role sends none."""
    if seed is None:
        return None
    return random.Random("/".join(str(part) for part in (seed, *parts))).randrange(2**31)


class Exchange(Generic[T]):
    """One question and everything done to get usable samples of its answer."""

    def __init__(
        self, channel: CallChannel, request: Request, *, prompts: PromptLibrary, read: Callable[[Choice], T]
    ) -> None:
        self._channel = channel
        self._prompts = prompts
        self._request = request
        self._read = read
        self._seed = request.seed
        self._samples: list[Sample[T]] = []
        self._last_choices: dict[int, Choice] = {}
        self._refused_slots: set[int] = set()
        """Slots whose request the endpoint refused for good: asking again cannot help."""
        self._is_replayed: dict[str, bool] = {}
        """By key, the calls that were answered, the first one first: whether that was before."""
        self._question = ""
        """The key of the first call."""

    async def run(self, num_samples: int, *, may_repair: bool = True) -> list[Sample[T]]:
        """Return the samples after re-asking and, where allowed, repair; where the user lets it, anew."""
        channel = self._channel
        ledger, role = channel.ledger, channel.client.role
        await self._ask(num_samples, may_repair=may_repair)
        if self._came_to_nothing_before() and ledger.failures.may_ask_again(self._question):
            await ledger.release(self._question, self._is_replayed)
            await self._ask(num_samples, may_repair=may_repair)
        failures = [sample.failure for sample in self._samples]
        await ledger.failures.note_samples(self._question, failures, role=role)
        for failure in failures:
            channel.budget.note(failure, role=role, max_share=channel.settings.max_failure_share)
        return self._samples

    def _came_to_nothing_before(self) -> bool:
        """Return whether no sample has a value, and the ledger held all the replies."""
        has_value = any(sample.value is not None for sample in self._samples)
        return not has_value and bool(self._is_replayed) and all(self._is_replayed.values())

    async def _ask(self, num_samples: int, *, may_repair: bool) -> None:
        self._samples = [Sample(None, None)] * num_samples
        self._last_choices.clear()
        self._refused_slots.clear()
        self._is_replayed.clear()
        attempts = 1 if self._channel.settings.is_compat else self._channel.settings.max_reply_attempts
        for attempt in range(attempts):
            slots = self._open_slots()
            if not slots:
                break
            await self._ask_for(slots, attempt)
        if may_repair and not self._channel.settings.is_compat:
            await asyncio.gather(*(self._repair(slot) for slot in self._open_slots()))

    def _open_slots(self) -> list[int]:
        return [
            slot
            for slot, sample in enumerate(self._samples)
            if sample.value is None and slot not in self._refused_slots
        ]

    async def _ask_for(self, slots: list[int], attempt: int) -> None:
        is_whole = len(slots) == len(self._samples)
        request = replace(self._request, num_samples=len(slots), max_tokens=self._token_limit(slots))
        if not is_whole:
            request = replace(request, seed=derive_seed(self._seed, "missing", attempt, *slots))
        channel = self._channel
        key = channel.key_of(request, attempt=attempt)
        self._question = self._question or key
        if len(slots) > 1 and channel.learned.ignores_n and not channel.ledger.holds(key):
            # Kept under the key of the whole request: that is where a run that did not know this yet has it.
            first = self._fill(slots[:1], key, replace(request, num_samples=1))
            await asyncio.gather(first, self._fill_singly(slots, request, attempt))
            return
        num_given = await self._fill(slots, key, request)
        if 0 < num_given < len(slots):
            # The server ignores n: the missing samples become calls of their own, now and from here on.
            if not channel.learned.ignores_n:
                await channel.learn(ignores_n=True)
            await self._fill_singly(slots, request, attempt, num_given=num_given)

    async def _fill_singly(self, slots: list[int], request: Request, attempt: int, *, num_given: int = 1) -> None:
        """Fill the slots after the first ``num_given``, each by a call with a seed of its own."""

        async def fill_one(place: int) -> None:
            single = replace(request, num_samples=1, seed=derive_seed(request.seed, "sample", slots[place]))
            key = self._channel.key_of(single, attempt=attempt, sample_index=place)
            await self._fill([slots[place]], key, single)

        await asyncio.gather(*(fill_one(place) for place in range(num_given, len(slots))))

    async def _fill(self, slots: list[int], key: str, request: Request) -> int:
        """Settle the slots with a call's choices and return how many it gave."""
        record = await self._call(key, request, slots)
        if record is None:
            return 0
        choices = record.choices
        for slot, choice in zip(slots, choices or [Choice(text="")] * len(slots), strict=False):
            self._settle(slot, choice, key)
            if record.usage.reasoning_tokens and choice.is_cut and not choice.text.strip():
                await self._note_eaten(slot, record.usage.reasoning_tokens)
        settled = slots[: len(choices)] if choices else slots
        failures = [failure for slot in settled if (failure := self._samples[slot].failure) is not None]
        await self._channel.ledger.failures.note_replies(key, failures)
        if request.schema is not None and choices and self._rung() < self._channel.learned.doubted:
            await self._judge_doubted(is_usable=not failures)
        if request.top_logprobs and choices and all(_is_untold(choice) for choice in choices):
            await self._learn_top_logprobs(0)
        return len(choices)

    async def _repair(self, slot: int) -> None:
        choice, failure = self._last_choices.get(slot), self._samples[slot].failure
        if choice is None or failure is None or failure.kind == "refused":
            return
        # Without its thinking, as chat templates show former turns.
        answer = read_answer(choice.text, is_structured=True).text
        if not answer.strip():
            return
        repair: list[Message] = [
            {"role": "assistant", "content": answer},
            self._prompts.render_repair(failure.detail),
        ]
        request = replace(
            self._request,
            messages=[*self._request.messages, *repair],
            seed=derive_seed(self._seed, "repair", slot),
            max_tokens=self._token_limit([slot]),
        )
        await self._fill([slot], self._channel.key_of(request), request)

    async def _call(self, key: str, request: Request, slots: list[int]) -> CallRecord | None:
        """Return the call, made by climbing down the ladder as the server refuses what is asked of it.

        ``None`` says that it refuses the request however it is asked; the slots have their reason then.
        """
        channel = self._channel
        while True:
            rung = self._rung()
            sent = replace(
                self._fit_endpoint(request),
                mode=LADDER[rung],
                messages=self._adapt(request.messages),
                top_logprobs=min(request.top_logprobs, channel.learned.top_logprobs),
            )
            try:
                entry = await channel.call(key, sent)
                self._is_replayed[key] = entry.is_replayed
                return entry.record
            except RefusedRequestError as error:
                remedy = error.failure.remedy
                if remedy == "climb" and rung < len(LADDER) - 1:
                    if channel.learned.rung <= rung:
                        await channel.learn(rung=rung + 1)
                elif remedy == "complete" and self._may_complete(sent):
                    await channel.learn(is_without_chat=True)
                elif remedy == "merge_system" and self._has_system_to_merge(sent.messages):
                    await channel.learn(merges_system=True)
                elif remedy == "lower_logprobs" and sent.top_logprobs:
                    is_many = sent.top_logprobs > FEW_TOP_LOGPROBS
                    await self._learn_top_logprobs(FEW_TOP_LOGPROBS if is_many else 0)
                else:
                    self._fail(slots, error.failure)
                    return None

    def _rung(self) -> int:
        mode = self._channel.client.settings.reply_mode
        if self._request.schema is None or self._channel.settings.is_compat:
            return len(LADDER) - 1
        rung = max(0 if mode == "auto" else LADDER.index(mode), self._channel.learned.rung)
        # Tools are a matter of chat.
        return rung + (self._fit_endpoint(self._request).endpoint == "completions" and LADDER[rung] == "tool")

    async def _judge_doubted(self, *, is_usable: bool) -> None:
        """Leave the rungs that a probe saw nothing of, once real replies fail on them as well."""
        learned = self._channel.learned
        learned.num_unusable = 0 if is_usable else learned.num_unusable + 1
        if learned.num_unusable == _MAX_UNUSABLE:
            await self._channel.learn(rung=learned.doubted)

    def _fit_endpoint(self, request: Request) -> Request:
        """Return the request as a text completion, where the model turned out to take no chat."""
        if not self._channel.learned.is_without_chat or not self._may_complete(request):
            return request
        return replace(request, endpoint="completions", stop=merge_stops(request.stop, REPLY_STOPS))

    def _may_complete(self, request: Request) -> bool:
        return self._channel.may_complete and request.endpoint == "chat" and request.schema is not None

    async def _learn_top_logprobs(self, given: int) -> None:
        """Remember that the model's server tells no more token probabilities than these; tell once that it has none."""
        channel = self._channel
        if given >= channel.learned.top_logprobs:
            return
        await channel.learn(top_logprobs=given)
        if given == 0:
            channel.warn(f"the {self._name} tells no token probabilities: its scores stay whole numbers")

    async def _note_eaten(self, slot: int, num_tokens: int) -> None:
        """Say of an empty reply that the model's reasoning took all its tokens; tell it once."""
        channel, role = self._channel, self._channel.client.role
        detail = (
            f"the reply is empty: reasoning took all of its tokens ({num_tokens:,}). "
            f"Raise {role}.max_tokens, or lower {role}.reasoning_effort"
        )
        if (failure := self._samples[slot].failure) is not None:
            self._samples[slot] = Sample(None, failure.model_copy(update={"detail": detail}))
        if not channel.learned.has_told_of_reasoning:
            await channel.learn(has_told_of_reasoning=True)
            channel.warn(f"{self._name}: {detail}")

    @property
    def _name(self) -> str:
        client = self._channel.client
        return f"{client.role} model {client.settings.model!r}"

    def _adapt(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages with the system prompt merged into the user's where the model has no system role."""
        mode = self._channel.client.settings.system_role
        is_merged = mode == "merge" or (mode == "auto" and self._channel.learned.merges_system)
        if not is_merged or messages[0]["role"] != "system":
            return list(messages)
        asked = [one["content"] for one in messages[1:2] if one["role"] == "user"]
        merged: Message = {"role": "user", "content": "\n\n".join([messages[0]["content"], *asked])}
        return [merged, *messages[1 + len(asked) :]]

    def _has_system_to_merge(self, sent: Sequence[Message]) -> bool:
        return self._channel.client.settings.system_role == "auto" and sent[0]["role"] == "system"

    def _settle(self, slot: int, choice: Choice, key: str) -> None:
        self._last_choices[slot] = choice
        try:
            self._samples[slot] = Sample(self._read(choice), None, key)
        except ReplyError as error:
            kind: FailureKind = "truncated" if choice.is_cut and error.kind == "empty" else error.kind
            self._samples[slot] = Sample(None, Failure(kind=kind, detail=str(error)))

    def _fail(self, slots: list[int], failure: CallFailure) -> None:
        kind: FailureKind = "unavailable" if failure.remedy == "retry" else "rejected"
        if failure.remedy == "refuse":
            kind = "refused"
        elif is_context_overflow(failure):
            kind = "overflow"
        # What was found out here is in our own words; a server's need the status that they came with.
        detail = failure.message if failure.kind == OVERFLOW else f"{failure.kind}: {failure.message}"
        for slot in slots:
            self._refused_slots.add(slot)
            # What was wrong with an earlier reply says more than that no better one could be had.
            if self._samples[slot].failure is None:
                self._samples[slot] = Sample(None, Failure(kind=kind, detail=detail))

    def _token_limit(self, slots: list[int]) -> int:
        """Return the reply's token limit, doubled where a former reply was cut off by it."""
        failures = [self._samples[slot].failure for slot in slots]
        is_cut = any(failure is not None and failure.kind == "truncated" for failure in failures)
        return self._request.max_tokens * (2 if is_cut else 1)
