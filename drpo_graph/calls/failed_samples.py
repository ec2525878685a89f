"""What failed in a run, noted with it: tries, replies and samples. All is counted; samples may be asked for again.

A run whose critic was broken for a while holds its replies to be final. The user may let it ask again
(``drpo resume --retry-failed``): what had failed before that is then made anew where the run comes by it.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from drpo_graph.errors import TooManyFailuresError
from drpo_graph.records import Failure, Role
from drpo_graph.storage.archive import Archive

_CALL, _REPLY, _SAMPLE = "call/", "reply/", "sample/"

WINDOW = 50
"""The share is that of so many last samples."""

MIN_SAMPLES = 20
"""Fewer say nothing."""


async def ask_again(archive: Archive) -> None:
    """Let a run ask again for the samples that have failed so far."""
    await archive.put("run", "asked_again", {"num_asked": await _count_asked(archive) + 1})


class FailureNotes:
    """What failed in one run. :meth:`load` comes first."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._asked_by_question: dict[str, int] = {}
        """Of the questions with failed samples: what :attr:`num_asked` was when they failed."""
        self.num_asked = 0
        """How often the user has let failed samples be asked for again."""

    async def load(self) -> None:
        """Read what former processes noted."""
        self.num_asked = await _count_asked(self._archive)
        for key, stored in (await self._archive.get_all("failures")).items():
            if key.startswith(_SAMPLE):
                self._asked_by_question[key.removeprefix(_SAMPLE)] = _as_count(stored["num_asked"])

    def may_ask_again(self, question: str) -> bool:
        """Return whether the user has let failed samples be asked for again since this question's failed."""
        return self._asked_by_question.get(question, 0) < self.num_asked

    async def note_samples(self, question: str, outcomes: Sequence[Failure | None], *, role: Role) -> None:
        """Note which samples of a question failed, after everything that was done to get usable replies.

        Args:
            question: The ledger key of its first call.
            outcomes: Of each sample why it has no usable reply, if so.
            role: Whose samples they are.
        """
        kinds = Counter(str(one.kind) for one in outcomes if one is not None)
        if kinds:
            noted: dict[str, JsonValue] = {"role": role, "num_asked": self.num_asked, "failures": dict(kinds)}
            await self._archive.put("failures", _SAMPLE + question, noted)
            self._asked_by_question[question] = self.num_asked
        elif self._asked_by_question.pop(question, None) is not None:
            await self._archive.change({("failures", _SAMPLE + question): None})

    async def note_replies(self, key: str, failures: Iterable[Failure]) -> None:
        """Note which of a call's replies could not be used."""
        kinds = Counter(str(one.kind) for one in failures)
        if kinds:
            await self._archive.put("failures", _REPLY + key, dict(kinds))

    async def add_tries(self, key: str, tries: Mapping[str, int]) -> None:
        """Note the tries that failed before a call was refused or given up, by kind, with those noted of it before."""
        if tries:
            former = await self._archive.get("failures", _CALL + key) or {}
            await self._archive.put("failures", _CALL + key, dict(Counter(tries) + _count(former)))


def count_replies(notes: Mapping[str, Mapping[str, JsonValue]]) -> Counter[str]:
    """Return the replies that could not be used, by kind."""
    return sum((_count(stored) for key, stored in notes.items() if key.startswith(_REPLY)), Counter())


def count_failures(notes: Mapping[str, Mapping[str, JsonValue]]) -> Counter[str]:
    """Return, by kind, the failed tries of calls that gave nothing, and the failed samples that no rollout tells of."""
    counts: Counter[str] = Counter()
    for key, stored in notes.items():
        failures = stored.get("failures")
        if key.startswith(_CALL):
            counts.update(_count(stored))
        # Those of the other roles, and of a part in their place, are the rollouts'.
        elif key.startswith(_SAMPLE) and stored.get("role") in ("metrics", "optimizer") and isinstance(failures, dict):
            counts.update(_count(failures))
    return counts


async def _count_asked(archive: Archive) -> int:
    stored = await archive.get("run", "asked_again")
    return 0 if stored is None else _as_count(stored["num_asked"])


def _as_count(stored: JsonValue) -> int:
    assert isinstance(stored, int)
    return stored


def _count(stored: Mapping[str, JsonValue]) -> Counter[str]:
    return Counter({kind: count for kind, count in stored.items() if isinstance(count, int)})


class FailureBudget:
    """The outcomes of a role's last samples, in one run and process."""

    def __init__(self) -> None:
        self._outcomes: deque[Failure | None] = deque(maxlen=WINDOW)

    def note(self, failure: Failure | None, *, role: Role, max_share: float) -> None:
        """Count a sample, after everything that was done to get a usable reply.

        Args:
            max_share: How many of the last samples may fail, as a share; 1 lets all of them.

        Raises:
            TooManyFailuresError: more of them did.
        """
        self._outcomes.append(failure)
        failures = [one for one in self._outcomes if one is not None]
        total = len(self._outcomes)
        # A sample that came out is no reason to stop, even while the share is still high.
        if failure is None or total < MIN_SAMPLES or len(failures) <= max_share * total:
            return
        kinds = Counter(one.kind for one in failures).most_common(3)
        told = ", ".join(f"{kind} {count}" for kind, count in kinds)
        raise TooManyFailuresError(
            f"{len(failures)} of the {role} model's last {total} samples had no usable reply, more than "
            f"max_failure_share={max_share:g} allows ({told}; the last one: {failure.detail}). Check it with "
            f"`drpo models check`; a resumed run finds these replies again unless it is told to ask anew. "
            f"--set max_failure_share=1 goes on whatever fails.",
            role=role,
            share=len(failures) / total,
        )
