"""Scores weighed by the judge's doubt: the mean of 1 to 5 by their probabilities at the score's own token (G-Eval).

A judge that writes 4 may have been near to writing 5 (arXiv 2303.16634, section 2). Servers tell how probable the
tokens were that they chose from; of these, only those where a digit may be a score are kept.
"""

import json
import re
from collections.abc import Iterator

from drpo_graph.models.request import Choice
from drpo_graph.parts.parsing import find_json
from drpo_graph.records import Critique, MetricScore, metric_key

_DIGIT = re.compile(r'"?\s*([1-5])')
_SPACE = re.compile(r"[ \t\n\r]*")
_decoder = json.JSONDecoder(strict=False)


def soften_critique(critique: Critique, choice: Choice) -> Critique:
    """Return the critique that a choice holds, with expectations for scores where the probabilities are known."""
    text = choice.text
    token_by_offset = {token.offset: token for token in choice.score_tokens}
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

    Empty where the reply is only nearly JSON: then its places are not known.

    Raises:
        ReplyError: the reply holds no JSON object.
    """
    _, root = find_json(text)
    try:
        return _find_places(text, root)
    except (ValueError, IndexError):
        return {}


def _find_places(text: str, root: int) -> dict[str, int]:
    scores = dict(_items(text, root)).get("scores", root)
    entries: dict[str, int] = {}
    if text[scores] == "{":
        entries = {metric_key(name): place for name, place in dict(_items(text, scores)).items()}
    elif text[scores] == "[":
        entries = {_name_at(text, place): place for _, place in _items(text, scores) if text[place] == "{"}
    places = {}
    for name, place in entries.items():
        score = dict(_items(text, place)).get("score") if text[place] == "{" else place
        if score is not None:
            places[name] = score
    return places


def _name_at(text: str, start: int) -> str:
    """Return the metric key in an entry of a list of scores."""
    entry, _ = _decoder.raw_decode(text, start)
    return metric_key(str(entry.get("metric", entry.get("name", ""))))


def _items(text: str, start: int) -> Iterator[tuple[str, int]]:
    """Yield the key of each value of the JSON object or array at ``start``, empty in an array, and where it begins."""
    key, position = "", _skip_space(text, start + 1)
    while text[position] not in "}]":
        if text[start] == "{":
            key, position = _decoder.raw_decode(text, position)
            position = _skip_space(text, _skip_space(text, position) + 1)
        yield key, position
        _, end = _decoder.raw_decode(text, position)
        end = _skip_space(text, end)
        position = _skip_space(text, end + 1) if text[end] == "," else end


def _skip_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    assert space is not None, "it matches nothing, too"
    return space.end()
