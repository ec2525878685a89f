"""Scores weighed by the judge's doubt: the mean of 1 to 5 by their probabilities at the score's own token (G-Eval).

A judge that writes 4 may have been near to writing 5 (arXiv 2303.16634, section 2). Servers tell how probable the
tokens were that they chose from; of these, only those where a digit may be a score are kept.
"""

import json
import re
from collections.abc import Sequence

from drpo_graph.models.token_scores import ScoreToken
from drpo_graph.parts.parsing import find_json
from drpo_graph.records import Critique, MetricScore, metric_key

_DIGIT = re.compile(r'"?\s*([1-5])')
_SPACE = re.compile(r"[ \t\n\r]*")
_decoder = json.JSONDecoder(strict=False)


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
