"""Every error that drpo_graph raises on purpose.

Each one says what was expected, what came and what to do, and carries the facts as attributes. ``exit_code`` is what
``drpo`` ends with when the error reaches the command line.
"""

from typing import ClassVar, Literal

FailureKind = Literal[
    "unparsable",
    "truncated",
    "refused",
    "empty",
    "overflow",
    "rejected",
    "unavailable",
    "reward_error",
    "placeholders",
    "overlong",
    "quoted",
]
"""Why a sample has no usable reply: a closed set, counted by kind in the result."""

RETRY_FLAG = "--retry-failed"
"""Lets a resumed run ask again for what had no usable reply."""


class DRPOError(RuntimeError):
    """Base of every error that drpo_graph raises on purpose.

    A ``RuntimeError``: LangGraph's server tells callers the message of Python's own kinds and of no other, and its
    retry policies do not try again what would fail in the same way.
    """

    exit_code: ClassVar[int] = 1
    is_resumable: ClassVar[bool] = False
    was_shown: bool = False
    """Whether a display has told the user already."""
    resume_flags: str = ""
    """What the command that resumes the run needs besides, e.g. ``--max-calls 200``."""
    resume_verb: ClassVar[str] = "resume"
    """The command of ``drpo`` by which the run goes on."""


class UsageError(DRPOError):
    """A setting, an argument or a path is wrong; nothing was started."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting has a value that cannot be used."""


class DatasetError(UsageError):
    """A dataset cannot be read; the message names every malformed record with its file and line.

    Attributes:
        problems: One line per malformed record, ``file:line: what is wrong``; a single one stands on the message's.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__((" " if len(problems) == 1 else "\n").join((message, *problems)))
        self.problems = problems


class DemonstrationsError(DatasetError):
    """Logs of what prompts did on queries cannot be used; the message names every kind of wrong row with an example."""


class RewardModelError(UsageError):
    """A reward model or router does not fit what it is used with, or cannot be learned, saved or read."""


class PickleError(UsageError):
    """A pickle cannot be read as data: it is damaged, names what is not allowed, or asks for too much."""


class TemplateError(UsageError):
    """A prompt template or the metrics file is missing, or has placeholders that its renderer does not fill."""


class ModelSpecError(UsageError):
    """A model string cannot be resolved to a client (unknown provider, missing extra, missing key)."""


class ModelCallError(DRPOError):
    """A model endpoint gave no reply, and asking again cannot help or did not.

    Attributes:
        kind: Short machine-readable cause, e.g. ``http_401``, ``unreachable``, ``timeout``.
        role: The role whose call failed.
    """

    is_resumable = True

    def __init__(self, message: str, *, kind: str, role: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.role = role


class EmbeddingsError(DRPOError):
    """Texts cannot be embedded: an endpoint is out of reach or answers with no embeddings, or an extra is missing."""

    is_resumable = True


class ReplyError(DRPOError):
    """One reply could not be used; it becomes an unscored result with this reason, never a zero.

    Attributes:
        kind: Why, as one of :data:`FailureKind`.
    """

    def __init__(self, message: str, *, kind: FailureKind = "unparsable") -> None:
        super().__init__(message)
        self.kind: FailureKind = kind


class RewardError(DRPOError):
    """Code of the user's raised what it had not announced, or does not end; mended, the run can be resumed."""

    is_resumable = True


class PartError(DRPOError):
    """A part of the user's own returned what cannot be used; mended, the run can be resumed."""

    is_resumable = True


class UnexpectedEndError(DRPOError):
    """What the list of runs tells of a run that an error ended which nobody foresaw; that one itself is raised."""

    is_resumable = True


class ScreenError(DRPOError):
    """A screen of the user's made a choice among rewrites that cannot be followed; mended, the run can be resumed."""

    is_resumable = True


class TooManyFailuresError(DRPOError):
    """Most samples of a role have no usable reply: the run would go on without getting on.

    Attributes:
        role: The role.
        share: Of its last samples, those that failed.
    """

    is_resumable = True
    resume_flags = RETRY_FLAG

    def __init__(self, message: str, *, role: str, share: float) -> None:
        super().__init__(message)
        self.role = role
        self.share = share


class ServeError(DRPOError):
    """A model server cannot be started, or has ended by itself; the message ends with the last lines of its log.

    Attributes:
        log_lines: Those lines.
    """

    def __init__(self, message: str, log_lines: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *(f"  {line}" for line in log_lines))))
        self.log_lines = log_lines


class UnusableModelError(DRPOError):
    """A model answers, but its replies are of no use in a role."""


class CheckpointError(DRPOError):
    """The checkpoint cannot be opened, read or written."""


class NoRunsError(CheckpointError):
    """The checkpoint is there, and holds no runs."""


class DamagedError(CheckpointError):
    """Something that is stored is not what was stored: it cannot be read, was changed, or stands in another's place.

    Attributes:
        thread_id: The run, where it is known.
    """

    def __init__(self, message: str, *, thread_id: str | None = None) -> None:
        super().__init__(message)
        self.thread_id = thread_id


class ReadOnlyError(CheckpointError):
    """The checkpoint can be read, perhaps, and not written."""


class LeaseLostError(CheckpointError):
    """This process's lease on a run has ended: the run may be another's, and this process has written nothing since."""


class RunNotFoundError(UsageError):
    """No run with this thread id is stored in the checkpoint."""


class RunExistsError(UsageError):
    """A run with this thread id exists already; ``drpo resume`` continues it."""


class RunLockedError(DRPOError):
    """Another process works on this thread id at the moment."""


class FingerprintMismatchError(UsageError):
    """A resumed run has other settings, prompts or data than it was started with.

    Attributes:
        changed: The parts of the fingerprint that differ.
    """

    def __init__(self, message: str, changed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.changed = changed


class StateFormatError(DRPOError):
    """A checkpoint was written by a version whose state cannot be read, or lacks a record that the state names."""


class SearchStalledError(DRPOError):
    """Nothing of a round could be scored: going on would only spend calls, or pick a candidate blindly.

    The replies that could not be used are in the ledger, and a resumed run finds the same unless it asks for them anew.
    """

    is_resumable = True
    resume_flags = RETRY_FLAG


class RunInterruptedError(DRPOError):
    """The run was asked to stop; finished calls are stored and the run can be resumed."""

    exit_code = 130
    is_resumable = True


class ReviewError(UsageError):
    """The answer to a review cannot be used, or nothing waits for one."""


class ReviewNeededError(RunInterruptedError):
    """The run waits for the decision of a person, in its checkpoint; ``drpo review`` shows what is asked.

    Attributes:
        level: The level that is scored.
        candidate_ids: Its beam.
    """

    exit_code = 4
    resume_verb = "review"

    def __init__(self, message: str, *, level: int, candidate_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.level = level
        self.candidate_ids = candidate_ids


class BudgetSpentError(RunInterruptedError):
    """A cap on calls, tokens, money or time is reached; with a larger one the run can be resumed."""

    exit_code = 3

    def __init__(self, message: str, *, resume_flags: str) -> None:
        super().__init__(message)
        self.resume_flags = resume_flags

    def add(self, sentence: str) -> None:
        """Add a sentence to the message."""
        self.args = (f"{self} {sentence}",)
