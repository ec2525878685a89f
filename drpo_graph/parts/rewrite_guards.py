"""What a rewrite must keep to before money is spent on evaluating it: placeholders, length, nothing quoted. Pure."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drpo_graph.errors import DatasetError, ReplyError
from drpo_graph.prompts.placeholders import FieldStyle, count_placeholders, describe_changes, fill, find_style, mark
from drpo_graph.records import Query, Rollout
from drpo_graph.safety.texts import shorten
from drpo_graph.settings.settings import Settings

_WORD = re.compile(r"\w+")
_MAX_NAMED = 5
_MIN_TASK_WORDS = 8


@dataclass(frozen=True, slots=True)
class RewriteGuard:
    """Says whether a rewrite of one prompt can be used; a rewriter asks it as it parses its model's reply."""

    own_texts: tuple[str, ...] = ()
    """The prompt that is rewritten, then its former versions: what stands in one of them may stay."""
    shown_texts: tuple[str, ...] = ()
    """Queries and responses that the rewriter is shown."""
    task_texts: tuple[str, ...] = ()
    """What the rewriter is told to do: whoever repeats it has written no instruction."""
    style: FieldStyle | None = None
    max_chars: int | None = None
    min_quote_chars: int | None = None
    min_quote_words: int | None = None

    @property
    def placeholders(self) -> tuple[str, ...]:
        """What a rewrite must keep, as it is written in the prompt."""
        if self.style is None:
            return ()
        return tuple(mark(name, self.style) for name in count_placeholders(self.own_texts[0], self.style))

    def check(self, prompt: str) -> str:
        """Return the prompt, which can be used.

        Raises:
            ReplyError: it cannot; the message says why, in words that a model can mend it by.
        """
        if self.style is not None and (problem := describe_changes(prompt, self.own_texts[0], self.style)):
            raise ReplyError(problem, kind="placeholders")
        if self.max_chars is not None and len(prompt) > self.max_chars:
            raise ReplyError(
                f"the prompt has {len(prompt)} characters, expected at most {self.max_chars}: make it shorter",
                kind="overlong",
            )
        if self._find_repeat(prompt, self.task_texts, min_chars=None, min_words=_MIN_TASK_WORDS) is not None:
            raise ReplyError(
                "the prompt repeats the task of improving it: expected instructions for the assistant itself",
                kind="quoted",
            )
        quote = self._find_repeat(
            prompt, self.shown_texts, min_chars=self.min_quote_chars, min_words=self.min_quote_words
        )
        if quote is not None:
            raise ReplyError(
                f"the prompt repeats what it must not quote, a query or an answer it was to learn from: "
                f"{shorten(quote)!r}. State the general rule instead",
                kind="quoted",
            )
        return prompt

    def _find_repeat(
        self, prompt: str, texts: Sequence[str], *, min_chars: int | None, min_words: int | None
    ) -> str | None:
        """Return the first span of these texts that the prompt repeats, and that no text of its own has."""
        for read, size, glue in ((_letters, min_chars, ""), (_words, min_words, " ")):
            if size is None:
                continue
            spans = set(_windows(read(prompt), size))
            for text in self.own_texts if spans else ():
                spans.difference_update(_windows(read(text), size))
            for text in texts if spans else ():
                for span in _windows(read(text), size):
                    if span in spans:
                        return glue.join(span)
        return None


NO_GUARD = RewriteGuard()


def make_guard(
    settings: Settings,
    *,
    initial_prompt: str,
    prompt: str,
    former_prompts: Sequence[str],
    examples: Sequence[tuple[Query, Rollout]],
) -> RewriteGuard:
    """Return what rewrites of a prompt must keep to; under compat nothing, as published.

    The initial prompt says how placeholders are written; the examples are what the rewriter is shown.
    """
    if settings.is_compat:
        return NO_GUARD
    return RewriteGuard(
        own_texts=(prompt, *former_prompts),
        shown_texts=tuple(
            text
            for query, rollout in examples
            for text in (query.text, *(turn.content for turn in query.history), rollout.response, query.reference)
            if text
        ),
        style=find_style(initial_prompt, settings.placeholders),
        max_chars=settings.max_prompt_chars,
        min_quote_chars=settings.min_quote_chars,
        min_quote_words=settings.min_quote_words,
    )


def check_fillable(settings: Settings, initial_prompt: str, queries: Sequence[Query]) -> None:
    """Do nothing when the prompt can be filled for every query.

    Raises:
        SettingsError: its placeholders cannot be read.
        DatasetError: a query has no value for one of them, and the settings have none either.
    """
    style = find_style(initial_prompt, settings.placeholders)
    if style is None:
        return
    names = [name for name in count_placeholders(initial_prompt, style) if name not in settings.placeholder_values]
    lacking = [
        (query.id, missing) for query in queries if (missing := [one for one in names if one not in query.values])
    ]
    if lacking:
        told = "; ".join(f"query {one!r}: {', '.join(missing)}" for one, missing in lacking[:_MAX_NAMED])
        raise DatasetError(
            f"{len(lacking)} of {len(queries)} queries have no value for a placeholder of the initial prompt ({told}). "
            "Give the queries 'values', or all of them one in the setting placeholder_values."
        )


def fill_prompt(settings: Settings, prompt: str, *, initial_prompt: str, query: Query) -> str:
    """Return what the base model is told for a query: the prompt with the query's values in its placeholders."""
    style = find_style(initial_prompt, settings.placeholders)
    return prompt if style is None else fill(prompt, style, {**settings.placeholder_values, **query.values})


def _letters(text: str) -> str:
    return " ".join(text.split()).casefold()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _windows(units: Sequence[str], size: int) -> Iterator[tuple[str, ...] | str]:
    """Yield every run of ``size`` units, hashable."""
    for start in range(len(units) - size + 1):
        window = units[start : start + size]
        yield window if isinstance(window, str) else tuple(window)
