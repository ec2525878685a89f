"""Tokens of a reply that may be scores, with their probabilities."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from drpo_graph.records import MIN_SCORE, Record

MAX_TOP_LOGPROBS = 20
"""Alternatives per token: what vLLM and OpenAI give at most."""

FEW_TOP_LOGPROBS = 5
"""What servers give that refuse so many: one for each score."""

_NOT_ASCII = bytes(range(128, 256))

_SCORE_TOKEN = re.compile(rb"""[\s"':,\[{(]*([1-5])""")

_ALTERNATIVE = re.compile(rb"""[\s"':,\[{(]*([1-5])(?:\.0*|/5?)?[\s"',}\]]*""")


class ScoreToken(Record):
    """A token of a reply that may be a score."""

    offset: int
    """Of its digit, in characters of the reply's text."""
    probabilities: tuple[float, float, float, float, float]
    """Of the digits 1 to 5 at this place, as shares of what the five have together."""

    @property
    def expected_score(self) -> float:
        """The mean of 1 to 5, weighed by their probabilities."""
        weighed = sum(score * weight for score, weight in enumerate(self.probabilities, MIN_SCORE))
        return round(weighed / sum(self.probabilities), 4)


class Token(NamedTuple):
    """One token of a reply: its bytes, and the log probabilities of what could have stood there, itself included."""

    text: bytes
    alternatives: Mapping[bytes, float]


def read_tokens(logprobs: object) -> Iterator[Token]:
    """Yield the tokens in a choice's ``logprobs``: as chat gives them, or in the older form of completions."""
    fields = logprobs if isinstance(logprobs, Mapping) else {}
    content, texts = fields.get("content"), fields.get("tokens")
    if isinstance(content, list):
        for entry in content:
            if isinstance(entry, Mapping):
                tops = entry.get("top_logprobs")
                alternatives = [one for one in tops if isinstance(one, Mapping)] if isinstance(tops, list) else []
                yield _read_token([entry, *alternatives])
    elif isinstance(texts, list):
        own, tops = fields.get("token_logprobs"), fields.get("top_logprobs")
        for place, text in enumerate(texts):
            entry = {"token": text, "logprob": _at(own, place)}
            top = _at(tops, place)
            alternatives = [{"token": one, "logprob": top[one]} for one in top] if isinstance(top, Mapping) else []
            yield _read_token([entry, *alternatives])


def find_score_tokens(tokens: Iterator[Token], text: str) -> tuple[ScoreToken, ...]:
    """Return the tokens of a reply that may be scores, by their place in its text; none where the two do not match.

    A character may be split over tokens, and a token may stand for text that the server left out: a stop, or thinking
    before the answer. So the two are laid over each other by their ASCII alone, which no token splits.
    """
    said, candidates = bytearray(), []
    for token in tokens:
        own = token.text.translate(None, _NOT_ASCII)
        match = _SCORE_TOKEN.match(own)
        if match is not None:
            candidates.append((len(said) + match.start(1), token))
        said += own
    if not candidates:
        return ()
    places = [place for place, char in enumerate(text) if char.isascii()]
    start = said.rfind("".join(text[place] for place in places).encode())
    found = []
    for position, token in candidates:
        probabilities = _weigh(token.alternatives)
        if probabilities is not None and start >= 0 and 0 <= position - start < len(places):
            found.append(ScoreToken(offset=places[position - start], probabilities=probabilities))
    return tuple(found)


def _read_token(entries: Sequence[Mapping[object, object]]) -> Token:
    """Return a token from its own entry and those of its alternatives."""
    text = _bytes_of(entries[0])
    if not _SCORE_TOKEN.match(text):
        return Token(text, {})
    return Token(text, {_bytes_of(one): _logprob_of(one) for one in entries})


def _bytes_of(entry: Mapping[object, object]) -> bytes:
    raw = entry.get("bytes")
    if isinstance(raw, list) and all(isinstance(one, int) and 0 <= one < 256 for one in raw):
        return bytes(raw)
    return str(entry.get("token") or "").encode("utf-8", "replace")


def _logprob_of(entry: Mapping[object, object]) -> float:
    logprob = entry.get("logprob")
    return float(logprob) if isinstance(logprob, int | float) else -math.inf


def _at(values: object, place: int) -> object:
    return values[place] if isinstance(values, list) and place < len(values) else None


def _weigh(alternatives: Mapping[bytes, float]) -> tuple[float, float, float, float, float] | None:
    """Return the shares of 1 to 5 among the alternatives that are one of them, or ``None`` where none is."""
    weights = dict.fromkeys(b"12345", 0.0)
    for text, logprob in alternatives.items():
        match = _ALTERNATIVE.fullmatch(text)
        if match is not None and not math.isnan(logprob):
            weights[match[1][0]] += math.exp(min(logprob, 0.0))
    total = sum(weights.values())
    if total <= 0:
        return None
    one, two, three, four, five = (round(weight / total, 6) for weight in weights.values())
    return one, two, three, four, five
