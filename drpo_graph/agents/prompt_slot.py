"""The place of the prompt in use: a private file whose prompt is swapped while others read it."""

import os.path
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from drpo_graph.errors import UsageError
from drpo_graph.inference.prompt_choice import ChosenPrompt, RoutedPrompt
from drpo_graph.inference.routers import RouterFile, RouterOpener, Routers, digest_router, load_router, mark_of
from drpo_graph.prompts.placeholders import FieldStyle, describe_changes, find_style
from drpo_graph.records import PlaceholderStyle, Record, RunResult
from drpo_graph.registry import RegisteredPrompt
from drpo_graph.safety.private_files import create_private_file, make_private_folder, write_atomically
from drpo_graph.safety.text_files import to_utf8
from drpo_graph.safety.texts import clean_surrogates

MAX_VERSIONS = 100
"""Former versions that are kept; the oldest go first."""

_FORMAT = 1
_LOCK_TIMEOUT_S = 30
_ROUTER_FIELDS = ("router", "router_sha256")


class SlotVersion(Record):
    """A prompt that is, or was, in use."""

    version: int = Field(ge=1)
    """Never given twice."""
    text: str
    """The prompt; a router's best single one, for those who ask no router."""
    router: str | None = None
    """The file of the router that chooses a prompt for each query: a full path, or one from the slot's folder."""
    router_sha256: str | None = None
    """What that file must hold, in hexadecimal digits."""
    run: str | None = None
    """The run that found it."""
    reward: float | None = None
    """On held-out queries where the run had any."""
    initial_reward: float | None = None
    """Of the prompt that the run began with, on the same queries where it was measured there."""
    replaced: int | None = None
    """The version that was in use before."""
    time: float
    """When it was put here, in seconds since the epoch."""

    @model_serializer(mode="wrap")
    def _leave_out_no_router(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        # Earlier releases read a file without routers.
        fields: dict[str, object] = serialize(self)
        return {name: one for name, one in fields.items() if one is not None or name not in _ROUTER_FIELDS}


class _Content(Record):
    """The file."""

    format: int = _FORMAT
    current: int
    placeholders: FieldStyle | None = None
    versions: tuple[SlotVersion, ...]


class PromptSlot:
    """A prompt, or a router that chooses one for each query, that can be swapped under a running app.

    The file is replaced in one step, and every reader looks whether it was: threads and other processes have the new
    prompt with their next request. Looking costs one ``stat``.

    Args:
        path: The file; beside it stands a lock file.
        initial: The first version, where there is no file yet.
        placeholders: How ``initial`` marks what the app fills in: a version that does not keep them is refused.
        open_router: Reads the file of a router; one of your own can give it other embeddings.

    Raises:
        UsageError: there is neither a file nor an initial prompt, or the file cannot be used.
        SettingsError: the initial prompt is not what ``placeholders`` says.
    """

    def __init__(
        self,
        path: Path,
        *,
        initial: str | None = None,
        placeholders: PlaceholderStyle = "none",
        open_router: RouterOpener = load_router,
    ) -> None:
        self.path = path
        self._routers = Routers(open_router)
        self._seen: tuple[tuple[int, ...], _Content] | None = None
        """What the file looked like when it was read, and what was in it."""
        if initial is not None and not path.exists():
            style = find_style(initial, placeholders)
            with self._hold():
                if not path.exists():  # Another process may have begun it meanwhile.
                    first = self._make(initial, number=1, replaced=None)
                    self._write(_Content(current=1, placeholders=style, versions=(first,)))
        self._read()

    def __repr__(self) -> str:
        return f"PromptSlot({str(self.path)!r})"

    @property
    def current(self) -> SlotVersion:
        """The prompt in use at this moment.

        Raises:
            UsageError: the file cannot be read.
        """
        content = self._read()
        return self._require(content, content.current)

    @property
    def versions(self) -> tuple[SlotVersion, ...]:
        """All versions that are kept, the oldest first."""
        return self._read().versions

    @property
    def placeholders(self) -> FieldStyle | None:
        """How the prompts mark what the app fills in; ``None`` when braces and dollar signs are what they are."""
        return self._read().placeholders

    def find_prompt(self) -> ChosenPrompt | RoutedPrompt:
        """Return the prompt in use at this moment, or what chooses it where that is a router.

        Raises:
            UsageError: the file cannot be read.
        """
        content = self._read()
        current = self._require(content, content.current)
        router = self._router_of(current)
        if router is not None:
            return RoutedPrompt(router, "slot", content.placeholders)
        return ChosenPrompt(current.text, "slot", content.placeholders)

    def swap(self, prompt: str | RunResult | Path, *, if_version: int | None = None) -> SlotVersion:
        """Put a prompt in use, and return its version; the former ones are kept.

        Args:
            prompt: A text; a run's result, whose run and rewards are noted; or the file of a router, which must stay as
                it is, beside the slot or elsewhere.
            if_version: The version that it is meant to replace.

        Raises:
            UsageError: the prompt is blank, it or one of a router's has other placeholders, another version is in use
                than ``if_version``, or the file cannot be written.
            RewardModelError: the router cannot be read.
        """
        # Reading a router may take a second; nobody waits for that.
        router, texts = self._note_router(prompt) if isinstance(prompt, Path) else (None, ())
        with self._hold():
            content = self._read()
            former = self._require(content, content.current)
            if if_version not in (None, former.version):
                raise self._error(
                    f"version {former.version} is in use, not {if_version}. Compare with that one before it is "
                    "replaced."
                )
            number = max(one.version for one in content.versions) + 1
            if router is not None:
                made = router.model_copy(update={"version": number, "replaced": former.version})
            else:
                assert not isinstance(prompt, Path), "a router has its own"
                made = self._make(prompt, number=number, replaced=former.version)
            if content.placeholders:
                for text in (made.text, *texts):
                    if problem := describe_changes(text, former.text, content.placeholders):
                        raise self._error(f"{problem}.")
            kept = (*content.versions, made)[-MAX_VERSIONS:]
            self._write(content.model_copy(update={"current": number, "versions": kept}))
        return made

    def roll_back(self, *, to: int | None = None) -> SlotVersion:
        """Put a former version back in use, and return it.

        Args:
            to: Its number; the one that was in use before this one when absent.

        Raises:
            UsageError: there is no such version any more, or the file cannot be written.
            RewardModelError: the version is a router, whose file is gone or has changed.
        """
        with self._hold():
            content = self._read()
            wanted = self._require(content, content.current).replaced if to is None else to
            if wanted is None:
                raise self._error(f"version {content.current} is the first: none is before it.")
            found = self._require(content, wanted)
            router = self._router_of(found)
            if router is not None:
                router.open()
            self._write(content.model_copy(update={"current": found.version}))
        return found

    def _make(self, prompt: str | RunResult, *, number: int, replaced: int | None) -> SlotVersion:
        text = clean_surrogates(prompt.system_prompt if isinstance(prompt, RunResult) else prompt)
        if not text.strip():
            raise self._error("the prompt is blank. Give a text.")
        made = SlotVersion(version=number, text=text, replaced=replaced, time=time.time())
        if isinstance(prompt, str):
            return made
        known = RegisteredPrompt.from_result(prompt, model=str(self.path))
        return made.model_copy(update=known.model_dump(include={"run", "reward", "initial_reward"}))

    def _note_router(self, path: Path) -> tuple[SlotVersion, tuple[str, ...]]:
        """Return a router's version, which has no number yet, and the prompts that it is known to choose from."""
        place, folder = os.path.abspath(path), os.path.abspath(self.path.parent)
        is_beside = os.path.commonpath([place, folder]) == folder
        digest = digest_router(path)
        file = self._routers.at(Path(place), sha256=digest)
        noted = self._make(file.best_prompt, number=1, replaced=None)
        name = os.path.relpath(place, folder) if is_beside else place
        return noted.model_copy(update={"router": name, "router_sha256": digest}), file.prompt_texts

    def _router_of(self, version: SlotVersion) -> RouterFile | None:
        if version.router is None:
            return None
        place = Path(os.path.abspath(self.path.parent), version.router)
        return self._routers.at(place, sha256=version.router_sha256)

    def _require(self, content: _Content, version: int) -> SlotVersion:
        found = next((one for one in content.versions if one.version == version), None)
        if found is None:
            known = ", ".join(str(one.version) for one in content.versions)
            raise self._error(f"there is no version {version}: expected one of {known}.")
        return found

    def _read(self) -> _Content:
        seen = self._seen  # One read: another thread may replace it.
        try:
            mark = mark_of(self.path)
            if seen is not None and seen[0] == mark:
                return seen[1]
            content = _Content.model_validate_json(to_utf8(self.path.read_bytes()))
        except FileNotFoundError as error:
            raise self._error("there is no file. Give it an initial prompt.") from error
        except OSError as error:
            raise self._error(f"{error.strerror or error}. Make the file readable.") from error
        except UnicodeDecodeError as error:
            raise self._error("it is not UTF-8 text. Mend the file or remove it.") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(one) for one in first["loc"])
            raise self._error(f"{place + ': ' if place else ''}{first['msg']}. Mend the file or remove it.") from error
        self._require(content, content.current)
        if content.format != _FORMAT:
            raise self._error(f"it has format {content.format}, this version reads {_FORMAT}.")
        # If it was replaced between the two steps, the mark is too old: the next reader reads it once more.
        self._seen = (mark, content)
        return content

    def _write(self, content: _Content) -> None:
        write_atomically(self.path, (content.model_dump_json(indent=2) + "\n").encode())

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Keep other threads and processes from writing meanwhile; what cannot be written is the slot's error."""
        lock_file = self.path.with_name(f"{self.path.name}.lock")
        try:
            make_private_folder(lock_file.parent)
            create_private_file(lock_file)
            # A lock object of its own each time: one that is shared lets a second thread in.
            with FileLock(lock_file, timeout=_LOCK_TIMEOUT_S):
                yield
        except Timeout as error:
            raise self._error("another process holds it. Try again.") from error
        except OSError as error:
            raise self._error(f"{error.strerror or error}. Give a file to write to.") from error

    def _error(self, problem: str) -> UsageError:
        return UsageError(f"Prompt slot {self.path}: {problem}")
