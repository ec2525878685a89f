"""Flags as the published command line writes them: its names, underscores, ``--x=True``; and back, for errors."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from drpo_graph.errors import UsageError

FLAG_BY_PUBLISHED_NAME = {
    "--base-model-name": "--base-model",
    "--metrics-model-name": "--metrics-model",
    "--eval-model-name": "--critic-model",
    "--optimize-model-name": "--optimizer-model",
    "--initial-system-prompt": "--initial-prompt",
    "--num-training-examples": "--num-queries",
    "--metrics-cache-path": "--metrics-cache",
}
"""Accepted everywhere; the help names them once."""

_SERVE_FLAGS = {"--base-model-download-dir": "--download-dir"}
"""What only ``drpo serve`` calls otherwise."""

_SETTING_BY_FLAG = {
    "--base-model": "base.model",
    "--metrics-model": "metrics.model",
    "--critic-model": "critic.model",
    "--optimizer-model": "optimizer.model",
    "--temperature": "optimizer.temperature",
}
"""How errors name what a flag gives, where that is not the flag's name."""

_OPPOSITE_BY_SWITCH: Mapping[str, str | None] = {
    "--is-gpt": "--no-is-gpt",
    "--ret-icl": "--no-ret-icl",
    "--disable-log": None,
    "--disable-tqdm": None,
    "--keep-parents": "--drop-parents",
    "--approve": None,
    "--dry-run": None,
    "--serve": None,
}
"""Flags without a value, and what says the opposite; ``None`` where leaving them out does."""

_FLAG = re.compile(r"--[A-Za-z][\w-]*")


@dataclass(frozen=True, slots=True)
class Translated:
    """A command line in our words."""

    arguments: list[str]
    typed_by_name: Mapping[str, str]
    """What was typed, by the flags and settings that errors name."""

    def as_typed(self, message: str) -> str:
        """Return an error's words with the names that were typed."""
        for name, typed in self.typed_by_name.items():
            message = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", typed.replace("\\", r"\\"), message)
        return message


def translate(arguments: Sequence[str]) -> Translated:
    """Return a command line in our words. What stands after a lone ``--`` is for another program.

    Raises:
        UsageError: a flag without a value is given one that is neither true nor false.
    """
    typed_by_name: dict[str, str] = {}
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words = _join_truths(arguments[:end])
    is_serve = list(arguments[:1]) == ["serve"]
    translated = [one for word in words for one in _translate(word, typed_by_name, is_serve=is_serve)]
    return Translated([*translated, *arguments[end:]], typed_by_name)


def _join_truths(words: Sequence[str]) -> Iterator[str]:
    """Yield the words, ``--ret_icl True`` as ``--ret_icl=True``: the published command line takes both."""
    skips = False
    for word, following in pairwise([*words, ""]):
        if not skips:
            skips = _to_ours(word) in _OPPOSITE_BY_SWITCH and following in ("True", "False")
            yield f"{word}={following}" if skips else word
        else:
            skips = False


def _to_ours(typed: str, *, is_serve: bool = False) -> str:
    """Return a flag's name here."""
    flag = typed.replace("_", "-").lower()
    return (_SERVE_FLAGS if is_serve else {}).get(flag, FLAG_BY_PUBLISHED_NAME.get(flag, flag))


def _translate(word: str, typed_by_name: dict[str, str], *, is_serve: bool) -> Iterator[str]:
    typed, separator, value = word.partition("=")
    if not _FLAG.fullmatch(typed):
        yield word
        return
    flag = _to_ours(typed, is_serve=is_serve)
    if flag != typed:
        setting = _SETTING_BY_FLAG.get(flag, flag.removeprefix("--").replace("-", "_"))
        name = typed.removeprefix("--")
        typed_by_name.update({flag: typed, setting: name})
        if setting.endswith(".model"):
            typed_by_name[f"The {setting.removesuffix('.model')} model"] = name
    if flag not in _OPPOSITE_BY_SWITCH:
        yield flag + separator + value
        return
    if not separator:
        yield flag
        return
    truth = {"true": True, "false": False}.get(value.lower())
    if truth is None:
        raise UsageError(f"{typed}={value}: expected True or False.")
    chosen = flag if truth else _OPPOSITE_BY_SWITCH[flag]
    if chosen is not None:
        yield chosen
