"""The registry: a folder with one private JSON file per model."""

import hashlib
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from drpo_graph.errors import UsageError
from drpo_graph.registry.prompt import GENERAL_PROMPT, RegisteredPrompt
from drpo_graph.safety.api_keys import KeyFinder
from drpo_graph.safety.private_files import write_atomically
from drpo_graph.safety.text_files import to_utf8

_SUFFIX = ".json"
_ROUTERS = "routers"
"""The folder of the routers' files."""
_MAX_NEAR = 3


class PromptRegistry:
    """Prompts by model name.

    Args:
        folder: Where they are kept; made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, model: str) -> RegisteredPrompt | None:
        """Return a model's prompt, or ``None`` when there is none.

        Raises:
            UsageError: the name can name no file, or the file cannot be read.
        """
        path = self._path(model)
        try:
            found = _read(path)
        except FileNotFoundError:
            return None
        # Where case makes no difference to a file's name, it does to a model's.
        return found if found.model == model else None

    def require(self, model: str) -> RegisteredPrompt:
        """Return a model's prompt.

        Raises:
            UsageError: there is none; those of similar names are told. Or as :meth:`find`.
        """
        found = self.find(model)
        if found is not None:
            return found
        near = self._near(model)
        hint = f" Near: {', '.join(near)}." if near else " `drpo prompts` lists what there is."
        raise UsageError(f"No prompt of {model!r} in {self.folder}.{hint}")

    def for_model(self, model: str) -> RegisteredPrompt:
        """Return a model's prompt, or the general one when there is none, for it or for it without its provider.

        Raises:
            UsageError: the name can name no file, or the file cannot be read.
        """
        known = self.find(model) or self.find(model.partition(":")[2] or model)
        return known or RegisteredPrompt(model=model, system_prompt=GENERAL_PROMPT, source="the general prompt")

    def add(self, prompt: RegisteredPrompt) -> Path:
        """Keep a prompt in the place of its model's former one, and return its file.

        Raises:
            UsageError: the name can name no file, or the file cannot be written or is another model's.
        """
        keys = KeyFinder()
        if words := keys.find(prompt.model, is_name=True) or keys.find(prompt.system_prompt):
            raise UsageError(f"The prompt, or the name of its model, holds {words}, and both are stored. Leave it out.")
        path = self._path(prompt.model)
        try:
            holder = _read(path).model
        except (FileNotFoundError, UsageError):
            # What is damaged is mended by being replaced.
            holder = prompt.model
        # One whose name differs in case alone, where case is nothing to a file's name.
        if holder != prompt.model:
            raise UsageError(
                f"Prompt registry {self.folder}: {path.name} holds the prompt of {holder!r}, not of {prompt.model!r}. "
                "Give another folder, or rename that file."
            )
        try:
            write_atomically(path, (prompt.model_dump_json(indent=2) + "\n").encode())
        except OSError as error:
            raise UsageError(
                f"Prompt registry {self.folder}: the prompt of {prompt.model!r} cannot be written: "
                f"{error.strerror or error}. Make the folder writable or give another one."
            ) from error
        return path

    def add_router(self, prompt: RegisteredPrompt, router: Path) -> Path:
        """Keep a prompt with a router, of whose file a copy is kept, and return the prompt's file.

        Former routers' files stay, since whoever serves a prompt may still read them.

        Args:
            prompt: What is kept beside the router; its text is for those who ask no router.
            router: The router's file.

        Raises:
            UsageError: the file cannot be read or copied, or as :meth:`add`.
        """
        try:
            content = router.read_bytes()
        except OSError as error:
            raise UsageError(
                f"Router {router}: {error.strerror or error}. Give the file of a router that can be read."
            ) from error
        # Named by what is in it, so that a reader has the old one or the new one, whole.
        name = f"{_ROUTERS}/{hashlib.sha256(content).hexdigest()}.npz"
        try:
            write_atomically(self.folder / name, content, root=self.folder)
        except OSError as error:
            raise UsageError(
                f"Prompt registry {self.folder}: the router of {prompt.model!r} cannot be written: "
                f"{error.strerror or error}. Make the folder writable or give another one."
            ) from error
        return self.add(prompt.model_copy(update={"router": name}))

    def find_router(self, prompt: RegisteredPrompt) -> Path | None:
        """Return the file of a prompt's router, or ``None`` where it has none.

        Raises:
            UsageError: it is not in this folder.
        """
        if prompt.router is None:
            return None
        path = self.folder / prompt.router
        # A link may lead elsewhere.
        if not path.resolve().is_relative_to(self.folder.resolve()) or not path.is_file():
            raise UsageError(
                f"Prompt registry {self.folder}: there is no file {prompt.router!r}, the router of {prompt.model!r}. "
                "Register the router again."
            )
        return path

    # After it, the name is no type in this class.
    def list(self) -> tuple[RegisteredPrompt, ...]:
        """Return all prompts, by model name.

        Raises:
            UsageError: a file cannot be read.
        """
        try:
            paths = [one for one in self.folder.iterdir() if one.suffix == _SUFFIX]
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise UsageError(
                f"Prompt registry {self.folder}: {error.strerror or error}. Give a folder that can be read."
            ) from error
        found: list[RegisteredPrompt] = []
        for path in paths:
            # One that was removed meanwhile, or a link that leads nowhere, hides no other.
            with suppress(FileNotFoundError):
                found.append(_read(path))
        return tuple(sorted(found, key=lambda one: one.model))

    def _near(self, model: str) -> tuple[str, ...]:
        by_folded = {one.model.casefold(): one.model for one in self.list()}
        wanted = model.casefold()
        part = [name for folded, name in by_folded.items() if wanted in folded]
        close = [by_folded[one] for one in get_close_matches(wanted, by_folded, n=_MAX_NEAR, cutoff=0.5)]
        return tuple(dict.fromkeys([*close, *part]))[:_MAX_NEAR]

    def _path(self, model: str) -> Path:
        try:
            name = quote(model, safe="")
        except UnicodeEncodeError as error:
            raise UsageError(f"Model name {model!r}: it is no valid text. Give its name in UTF-8.") from error
        if not name:
            raise UsageError("Model name: it is empty. Give the name under which the prompt is kept.")
        return self.folder / f"{name}{_SUFFIX}"


def _read(path: Path) -> RegisteredPrompt:
    try:
        # A pipe would hold the reader up for good.
        if path.exists() and not path.is_file():
            raise UsageError(f"Registered prompt {path}: it is no file. Remove it, or give another folder.")
        return RegisteredPrompt.model_validate_json(to_utf8(path.read_bytes()))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(
            f"Registered prompt {path}: {error.strerror or error}. Make it readable, or give another name or folder."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"Registered prompt {path}: it is not UTF-8 text. Remove it, and import it again.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(one) for one in first["loc"])
        raise UsageError(
            f"Registered prompt {path}: {place + ': ' if place else ''}{first['msg']}. Mend the file, or remove it and "
            "import the prompt again."
        ) from error
