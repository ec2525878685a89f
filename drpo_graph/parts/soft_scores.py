"""Scores weighed by the judge's doubt: the mean of 1 to 5 by their probabilities at the score's own token (G-Eval).

A judge that writes 4 may have been near to writing 5 (arXiv 2303.16634, section 2). Servers tell how probable the
tokens were that they chose from; of these, only those where a digit may be a score are kept.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from drpo_graph.parts.parsing import find_json
from drpo_graph.records import MIN_SCORE, Critique, MetricScore, Record, metric_key

MAX_TOP_LOGPROBS = 20
"""Alternatives per token: what vLLM and OpenAI give at most."""
FEW_TOP_LOGPROBS = 5
"""What servers give that refuse so many: one for each score."""

_NOT_ASCII = bytes(range(128, 256))
_SCORE_TOKEN = re.compile(rb"""[\s"':,\[{(]*([1-5])""")
_ALTERNATIVE = re.compile(rb"""[\s"':,\[{(]*([1-5])(?:\.0*|/5?)?[\s"',}\]]*""")
_DIGIT = re.compile(r'"?\s*([1-5])')
_SPACE = re.compile(r"[ \t\n\r]*")
_decoder = json.JSONDecoder(strict=False)


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


def soften_critique(critique: Critique, text: str, tokens: Sequence[ScoreToken]) -> Critique:
    """Return a critique whose scores are expectations, where the probabilities at their places are known.

    Args:
        critique: What :func:`~drpo_graph.parts.parsing.parse_critique` read in the reply.
        text: The reply.
        tokens: Its tokens that may be scores.
    """
    token_by_offset = {token.offset: token for token in tokens}
    places = find_scores(text) if token_by_offset else {}

    def soften(score: MetricScore) -> MetricScore:
        digit = _DIGIT.match(text, places.get(metric_key(score.metric), len(text)))
        token = token_by_offset.get(digit.start(1)) if digit is not None else None
        if digit is None or token is None or float(digit[1]) != score.score:
            return score
        return score.model_copy(update={"score": token.expected_score, "hard_score": score.score})

    return Critique(scores=tuple(soften(score) for score in critique.scores))


def find_scores(text: str) -> dict[str, int]:
    """Return where each metric's score stands in a critic's reply, by metric key, read as ``parse_critique`` reads it.

    Raises:
        ReplyError: the reply holds no JSON object.
    """
    root = _members(text, find_json(text).start)
    scores = root.get("scores")
    if scores is None:
        entries = {metric_key(name): place for name, place in root.items()}
    elif text[scores] == "{":
        entries = {metric_key(name): place for name, place in _members(text, scores).items()}
    else:
        entries = {_name_at(text, place): place for place in _elements(text, scores) if text[place] == "{"}
    places = {}
    for name, place in entries.items():
        score = _members(text, place).get("score") if text[place] == "{" else place
        if score is not None:
            places[name] = score
    return places


def _name_at(text: str, start: int) -> str:
    """Return the metric key in an entry of a list of scores."""
    entry, _ = _decoder.raw_decode(text, start)
    return metric_key(str(entry.get("metric", entry.get("name", ""))))


def _members(text: str, start: int) -> dict[str, int]:
    """Return where the values of the JSON object at ``start`` begin, by key; of equal keys the last counts."""
    places: dict[str, int] = {}
    position = _skip_space(text, start + 1)
    while text[position] != "}":
        key, position = _decoder.raw_decode(text, position)
        places[key] = _skip_space(text, _skip_space(text, position) + 1)
        position = _next_item(text, places[key])
    return places


def _elements(text: str, start: int) -> list[int]:
    """Return where the elements of the JSON array at ``start`` begin; a value of another kind has none."""
    places: list[int] = []
    position = _skip_space(text, start + 1)
    while text[start] == "[" and text[position] != "]":
        places.append(position)
        position = _next_item(text, position)
    return places


def _next_item(text: str, value: int) -> int:
    """Return where the item after the value at ``value`` begins, or the bracket that ends them."""
    _, end = _decoder.raw_decode(text, value)
    end = _skip_space(text, end)
    return _skip_space(text, end + 1) if text[end] == "," else end


def _skip_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    assert space is not None, "it matches nothing, too"
    return space.end()


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
