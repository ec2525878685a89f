"""The registry: a folder with one private JSON file per model."""

from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from drpo_graph.errors import UsageError
from drpo_graph.private_files import write_atomically
from drpo_graph.prompt_registry.general import GENERAL_PROMPT
from drpo_graph.prompt_registry.records import RegisteredPrompt

_SUFFIX = ".json"


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
            return _read(path)
        except FileNotFoundError:
            return None

    def for_model(self, model: str) -> RegisteredPrompt:
        """Return a model's prompt, or the general one when there is none.

        Raises:
            UsageError: the name can name no file, or the file cannot be read.
        """
        known = self.find(model)
        return known or RegisteredPrompt(model=model, system_prompt=GENERAL_PROMPT, source="the general prompt")

    def add(self, prompt: RegisteredPrompt) -> Path:
        """Keep a prompt in the place of its model's former one, and return its file.

        Raises:
            UsageError: the name can name no file, or the file cannot be written.
        """
        path = self._path(prompt.model)
        try:
            write_atomically(path, (prompt.model_dump_json(indent=2) + "\n").encode())
        except OSError as error:
            raise UsageError(
                f"Prompt registry {self.folder}: the prompt of {prompt.model!r} cannot be written: "
                f"{error.strerror or error}. Make the folder writable or give another one."
            ) from error
        return path

    def list(self) -> tuple[RegisteredPrompt, ...]:
        """Return all prompts, by model name.

        Raises:
            UsageError: a file cannot be read.
        """
        try:
            paths = [one for one in self.folder.iterdir() if one.suffix == _SUFFIX]
            return tuple(sorted((_read(one) for one in paths), key=lambda one: one.model))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise UsageError(
                f"Prompt registry {self.folder}: {error.strerror or error}. Give a folder that can be read."
            ) from error

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
        return RegisteredPrompt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(
            f"Registered prompt {path}: {error.strerror or error}. Make it readable, or give another name or folder."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(one) for one in first["loc"])
        raise UsageError(
            f"Registered prompt {path}: {place + ': ' if place else ''}{first['msg']}. Mend the file, or remove it and "
            "import the prompt again."
        ) from error
