"""Call a role's model: limiter, timeout, the one retry loop, and the ledger."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic import BaseModel

from drpo_graph.calls.budget import demand_of
from drpo_graph.calls.call_events import tell_failed, tell_finished, tell_started
from drpo_graph.calls.failed_samples import FailureBudget
from drpo_graph.calls.ledger import CallRecord, Ledger, LedgerEntry, call_key
from drpo_graph.calls.rate_limits import LimitNotices
from drpo_graph.calls.tries import Attempt, Servers, Tries
from drpo_graph.errors import ModelCallError
from drpo_graph.events.emitter import Emitter
from drpo_graph.events.schema import CallRetried, Warned
from drpo_graph.models.balancer import Replica
from drpo_graph.models.capabilities import Address
from drpo_graph.models.clients import ModelClient
from drpo_graph.models.failures import CallFailure, classify_failure, hides, is_context_overflow
from drpo_graph.models.outages import Circuit, never_ends
from drpo_graph.models.request import Reply, Request
from drpo_graph.models.terms import NO_TERMS, Terms
from drpo_graph.models.token_scores import MAX_TOP_LOGPROBS
from drpo_graph.safety.redaction import mask, redact
from drpo_graph.safety.texts import clean_surrogates
from drpo_graph.settings.prices import to_dollars
from drpo_graph.settings.settings import Settings
from drpo_graph.stop import await_unless_stopped
from drpo_graph.storage.archive import Archive

_KEY_KINDS = ("http_401", "http_403")
_ADVICE_BY_KIND = {
    "http_404": "Check the model's name and the base URL.",
    "quota": "The account has no credit left: top it up, then resume.",
}
_MAX_BACKOFF_S = 60.0
_MAX_DOUBLINGS = 30
_MAX_EXHAUSTED = 2
_FIRST_CONTACT_RETRIES = 2


class Learned(BaseModel):
    """What a model's server turned out to refuse; kept with the run, so that a resumed run asks the same way."""

    rung: int = 0
    doubted: int = 0
    """The rungs before this one are in doubt: a probe saw no reply that kept to them, and none was refused."""
    num_unusable: int = 0
    """How many replies in succession on a rung in doubt could not be used."""
    merges_system: bool = False
    is_without_chat: bool = False
    """Whether the model takes text completions only, which a call turned out."""
    ignores_n: bool = False
    top_logprobs: int = MAX_TOP_LOGPROBS
    """How many alternatives per token it tells the probabilities of; 0 for none."""
    terms: Terms = NO_TERMS
    """Fields that it refuses."""
    has_told_of_reasoning: bool = False
    """Whether it was told that reasoning leaves no room for replies."""
    has_told_of_usage: bool = False
    """Whether it was told that the server's numbers of tokens cannot be true."""
    thinks_unopened: bool = False
    """Whether replies begin with thinking that no tag opens: a stream shows nothing before its end then."""


class RefusedRequestError(Exception):
    """The endpoint refuses this one request; the caller decides what that means. Never reaches a node."""

    def __init__(self, failure: CallFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class UnexpectedClientError(Exception):
    """What a client raised that is no failed request but a bug, in words that do not hold the key."""


@dataclass(frozen=True, slots=True)
class CallChannel:
    """A role's model bound to one run: every call goes through its ledger and its events."""

    client: ModelClient
    settings: Settings
    ledger: Ledger
    archive: Archive
    emitter: Emitter
    learned: Learned = field(default_factory=Learned)
    budget: FailureBudget = field(default_factory=FailureBudget)
    has_ended: Callable[[str], bool] = never_ends
    """Whether the server at an endpoint is known to be gone for good: where it is, no call waits for it."""
    notices: LimitNotices = field(default_factory=LimitNotices)

    def key_of(self, request: Request, *, attempt: int = 0, sample_index: int = 0) -> str:
        """Return a call's ledger key: what was asked, not how the server had to be asked.

        A resumed run knows more about the server than the run did when it first asked, and still finds its calls.

        Args:
            request: The request as the role means it.
            attempt: How many replies to this very request were unusable before.
            sample_index: Which of several equal requests this is, where one request gives one sample.
        """
        return call_key(
            {
                "role": self.client.role,
                "model": self.client.settings.model,
                "attempt": attempt,
                "sample_index": sample_index,
                **request.key_parts(),
            }
        )

    async def call(self, key: str, request: Request) -> LedgerEntry:
        """Return one finished call, from the ledger where it stands already.

        Raises:
            RefusedRequestError: the endpoint refuses this one request, or fails it again and again.
            ModelCallError: the endpoint cannot be used at all (wrong key, unknown model, unreachable).
            RunInterruptedError: the run was asked to stop.
        """
        started = time.monotonic()
        entry = await self.ledger.once(
            key,
            lambda: self._make(key, request),
            on_commit=lambda record: self._report(record, key, duration_s=time.monotonic() - started),
        )
        if entry.is_replayed:
            self._report(entry.record, key, duration_s=0.0, is_replayed=True)
        return entry

    @property
    def may_complete(self) -> bool:
        """Whether text completions may stand in for chats; a base model's response has another form there."""
        return self.client.settings.endpoint == "auto" and self.client.role != "base"

    async def learn(self, **changes: object) -> None:
        """Remember, with the run, what the server refuses."""
        for name, value in changes.items():
            setattr(self.learned, name, value)
        # Without its place: a resumed run may find the model elsewhere.
        await self.archive.put("learned", self.client.settings.model, self.learned.model_dump(mode="json"))

    def warn(self, message: str) -> None:
        """Tell that the result is affected."""
        self.emitter.emit(Warned(run_id=self.emitter.run_id, message=message))

    async def _make(self, key: str, request: Request) -> CallRecord:
        tries = Tries()
        try:
            reply = await self._send(key, request, tries=tries)
        except Exception as error:
            # However it ended, by an outage or a stop as well: no record will tell of them.
            await self.ledger.failures.add_tries(key, tries.retries)
            if tries.is_told:
                failure = error.failure if isinstance(error, RefusedRequestError) else error
                tell_failed(self.emitter, self.client, key, failure=failure)
            raise
        tries.waiting.tell(self.emitter, max_outage_s=self.settings.max_outage_s)
        return CallRecord(
            role=self.client.role,
            model=self.client.settings.model,
            choices=reply.choices,
            usage=reply.usage,
            retries=tries.retries,
        )

    async def _send(self, key: str, request: Request, *, tries: Tries) -> Reply:
        servers = self._servers
        replica: Replica | None = None
        while True:
            probe = await servers.admit(tries)
            replica = servers.replica_of(probe) if probe else self.client.balancer.choose(request, avoid=replica)
            terms = self.learned.terms
            try:
                send = partial(self._send_now, key, request, replica=replica, tries=tries)
                reply = await self._send_once(send, replica=replica, probe=probe)
                if reply is None:
                    continue
                return reply
            except Exception as error:  # Clients of different providers share no base class.
                failure = classify_failure(error, secret=replica.secret)
                if failure is None:
                    if hides(replica.secret, error):
                        # LangGraph stores the text of what a node raises.
                        raise UnexpectedClientError(f"{type(error).__name__}: {redact(str(error))}") from None
                    raise
                if failure.remedy == "adapt" and await self._learn_terms(failure, sent=terms):
                    continue
                attempt = Attempt(replica, failure, tries)
                servers.note_failure(attempt)
                final = self._refuse(attempt) if failure.remedy != "retry" else self._give_up(attempt)
                if final is not None:
                    # A traceback shows the cause's text as well.
                    raise final from (None if hides(replica.secret, error) else error)
            finally:
                if probe is not None:
                    probe.end_probe()
            await self._wait_to_retry(key, attempt)

    async def _learn_terms(self, failure: CallFailure, *, sent: Terms) -> bool:
        """Return whether there are other terms to ask on than those that were refused; new ones are told once."""
        known = self.learned.terms
        terms = known.after(failure.refused)
        if terms == known:
            # Another call may have learnt them meanwhile.
            return known != sent
        told = terms.describe_since(known)
        self.warn(f"the model {self.client.settings.model!r} does not take every field: {told} ({failure.message})")
        await self.learn(terms=terms)
        return True

    @property
    def _servers(self) -> Servers:
        return Servers(
            client=self.client,
            settings=self.settings,
            emitter=self.emitter,
            stop=self.ledger.stop,
            has_ended=self.has_ended,
        )

    async def _send_once(
        self, send: Callable[[], Coroutine[object, object, Reply]], *, replica: Replica, probe: Circuit | None
    ) -> Reply | None:
        """Return the reply, or ``None`` where the endpoint was lost before the call could be sent."""
        gate = replica.gate()
        async with gate.slot(self.ledger.stop.guard):
            self.ledger.stop.check()
            if probe is None and self._servers.are_lost:
                return None
            sending = send()
            # Whether a lost server answers a probe is not known: a stop does not wait for it, as it does for a call.
            reply = await (sending if probe is None else await_unless_stopped(self.ledger.stop, sending))
        gate.note_success()
        self._servers.circuit_of(replica).note_success()
        if reply.has_untrue_usage and not self.learned.has_told_of_usage:
            await self.learn(has_told_of_usage=True)
            self.warn(
                f"{replica.endpoint} reports numbers of tokens for {self.client.settings.model!r} that cannot be true: "
                "they are left out, and budgets and prices count what the requests may use at most"
            )
        return _clean(reply, replica.secret)

    async def _send_now(self, key: str, request: Request, *, replica: Replica, tries: Tries) -> Reply:
        fitting = await self.client.window.fit(request) if self.client.window is not None else request
        if isinstance(fitting, CallFailure):
            raise RefusedRequestError(fitting)
        demand = demand_of(key, fitting, model=self.client.settings.model)
        hold = self.ledger.budget.hold(demand, self.ledger.stop.guard)
        async with hold as held, asyncio.timeout(self.settings.timeout_s):
            if not tries.is_told:
                tries.is_told = True
                tell_started(self.emitter, self.client, key, request=request)
            asked = replace(fitting, terms=self.learned.terms, role=self.client.role)
            reply = await replica.transport.send(asked)
            held.settle(reply.usage)
        return reply

    async def _wait_to_retry(self, key: str, failed: Attempt) -> None:
        replica, failure, tries = failed
        jitter = random.Random(f"{id(self)}/{time.monotonic_ns()}").uniform(0.5, 1.0)
        limit_left_s = self._servers.limit_left_s(failed)
        is_waited_out = limit_left_s is not None and limit_left_s > 0
        num_before = tries.retries.get(failure.kind, 0) if is_waited_out else tries.num_spent
        backoff_s = min(_MAX_BACKOFF_S, self.settings.retry_wait_s * 2 ** min(num_before, _MAX_DOUBLINGS)) * jitter
        # "At once" is no answer to how long an overload lasts.
        wait_s = failure.retry_after_s or backoff_s
        gate = replica.gate()
        if failure.is_overload:
            # One request that never ends is no reason to hold all others back: only a server's own word is.
            gate.note_overload(pause_s=0.0 if failure.kind == "timeout" else wait_s)
        elif failure.kind == "connection" or failure.kind.startswith("http_5"):
            gate.note_lost()
        if self._servers.are_lost or self.client.balancer.has_other(replica):
            # Nothing to wait for here: another server takes over, or all wait for the end of the outage.
            wait_s = 0.0
        elif is_waited_out and self.notices.is_news(replica.endpoint, wait_s):
            self._warn_of_limit(failed, wait_s)
        tries.count(failure, is_spent=not is_waited_out and not self._servers.are_to_blame(failure))
        self.emitter.emit(
            CallRetried(
                run_id=self.emitter.run_id,
                role=self.client.role,
                model=self.client.settings.model,
                key=key,
                kind=failure.kind,
                attempt=sum(tries.retries.values()),
                wait_s=round(wait_s, 3),
            )
        )
        await self.ledger.stop.guard(asyncio.sleep(wait_s))

    def _give_up(self, failed: Attempt) -> Exception | None:
        """Return the error after the last try: for the run when the endpoint is gone, else for this call alone."""
        replica, failure, tries = failed
        if self._servers.are_to_blame(failure):
            return None
        limit_left_s = self._servers.limit_left_s(failed)
        if limit_left_s is not None and not self.client.balancer.has_other(replica):
            wait_s = failure.retry_after_s or 0.0
            if wait_s <= limit_left_s and limit_left_s > 0:
                return None
            if wait_s:
                return self._overdue(failed)
        num_retries = tries.num_spent
        is_first_contact = failure.kind == "connection" and self.client.balancer.is_untried
        limit = self.settings.max_retries
        if is_first_contact:
            limit = min(limit, max(_FIRST_CONTACT_RETRIES, len(self.client.replicas)))
        if num_retries < limit:
            return None
        tries.count(failure)
        # A call that nobody takes says nothing of itself: the run stops, and makes it when it is resumed.
        is_gone = failure.is_unreached and not self.client.balancer.has_other(replica)
        num_exhausted = 0 if is_gone or is_first_contact else self._servers.circuit_of(replica).note_exhausted()
        if 0 < num_exhausted < _MAX_EXHAUSTED:
            return RefusedRequestError(failure)
        what = "cannot be reached" if failure.kind == "connection" else f"gave no reply ({failure.kind})"
        return ModelCallError(
            f"{self._name(replica)} {what} after {num_retries + 1} tries: {_sentence(failure.message)} "
            "Check that the server runs and the URL is right, then resume.",
            kind="unreachable" if failure.kind == "connection" else failure.kind,
            role=self.client.role,
        )

    def _overdue(self, failed: Attempt) -> ModelCallError:
        """Return the error for a limit that lasts longer than the run waits."""
        replica, failure, _ = failed
        return ModelCallError(
            f"{self._name(replica)} limits the rate for longer than max_outage_s={self.settings.max_outage_s:g} allows "
            f"({failure.kind}: {_sentence(failure.message)}) Resume later, or give --max-outage.",
            kind=failure.kind,
            role=self.client.role,
        )

    def _warn_of_limit(self, failed: Attempt, wait_s: float) -> None:
        replica, failure, _ = failed
        message = (
            f"{replica.endpoint} limits the rate ({failure.kind}: {failure.message}); calls wait {wait_s:.0f} s, "
            f"and {self.settings.max_outage_s:.0f} s at most without a reply"
        )
        self.emitter.emit(Warned(run_id=self.emitter.run_id, message=message))

    def _refuse(self, failed: Attempt) -> Exception:
        replica, failure, _ = failed
        never_succeeded = replica.gate().num_successes == 0
        is_rejected = failure.remedy in ("reject", "adapt") and not is_context_overflow(failure)
        is_lost = failure.remedy == "complete" and not self.may_complete
        is_settings_fault = (is_rejected or is_lost) and never_succeeded
        if failure.remedy == "stop" or is_settings_fault:
            advice = _ADVICE_BY_KIND.get(failure.kind, "Check the role's settings.")
            if failure.kind in _KEY_KINDS:
                advice = (replica.address or Address("", "")).key_advice
            return ModelCallError(
                f"{self._name(replica)} refused the call ({failure.kind}): {_sentence(failure.message)} {advice}",
                kind=failure.kind,
                role=self.client.role,
            )
        return RefusedRequestError(failure)

    def _name(self, replica: Replica) -> str:
        return f"The {self.client.role} model {self.client.settings.model!r} at {replica.endpoint}"

    def _report(self, record: CallRecord, key: str, *, duration_s: float, is_replayed: bool = False) -> None:
        cost = self.ledger.budget.prices.cost_of(record.model, record.usage)
        dollars = None if cost is None else to_dollars(cost)
        tell_finished(self.emitter, record, key, duration_s=duration_s, cost_usd=dollars, is_replayed=is_replayed)


def _clean(reply: Reply, secret: str) -> Reply:
    """Return a reply that can be stored: without halves of surrogate pairs, and without the key, should a server have
    repeated its request's headers."""

    def clean(text: str) -> str:
        return mask(clean_surrogates(text), secret=secret)

    cleaned = (
        one.model_copy(update={"text": clean(one.text), "refusal": one.refusal and clean(one.refusal)})
        for one in reply.choices
    )
    return Reply(tuple(cleaned), reply.usage)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
