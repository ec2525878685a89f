"""Read model replies: pure, lenient about form, strict about content.

Small models wrap JSON in prose or code fences; that is accepted. A score out of range or a missing metric is not
guessed at: it raises :class:`~drpo_graph.errors.ReplyError`, and the sample stays unscored with that reason.
"""

import json
import re
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from drpo_graph.errors import ReplyError
from drpo_graph.models.answers import read_answer
from drpo_graph.prompts.fencing import defuse_roles
from drpo_graph.records import MAX_SCORE, MIN_SCORE, Critique, Metric, MetricScore, MetricSelection, metric_key
from drpo_graph.safety.texts import clean_surrogates, shorten, strip_unseen

DEFAULT_MAX_METRICS = 5
_SCORE = re.compile(r"\s*(\d+)(?:\.0+)?\s*(?:/\s*5|out of 5)?\s*(?:\(.*\))?\s*", re.IGNORECASE | re.DOTALL)
_PLACEHOLDER = re.compile(r"<[^<>\n]+>")
_decoder = json.JSONDecoder(strict=False)


def extract_json(text: str) -> dict[str, JsonValue]:
    """Return the first JSON object in a reply, alone or surrounded by prose, a code fence or a model's thinking.

    An object inside one that was cut off is not taken for it.

    Raises:
        ReplyError: there is none.
    """
    value, _ = find_json(text)
    return value


def find_json(text: str) -> tuple[dict[str, JsonValue], int]:
    """Return the object that :func:`extract_json` takes, and where it begins in the reply.

    Raises:
        ReplyError: there is none.
    """
    said = read_answer(text, is_structured=True)
    answer = said.text
    position = answer.find("{")
    ends: list[int] | None = None
    while position >= 0:
        try:
            value, _ = _decoder.raw_decode(answer, position)
            if "\\ud" in answer[position:].lower():
                value = json.loads(clean_surrogates(json.dumps(value, ensure_ascii=False)))
        except (ValueError, RecursionError):  # Not JSON, a number of thousands of digits, or nested without end.
            value = None
        if isinstance(value, dict):
            return value, said.start + position
        ends = _block_ends(answer) if ends is None else ends
        position = answer.find("{", position + 1) if ends[position + 1] >= 0 else -1
    raise ReplyError(f"expected a JSON object, got {shorten(text)!r}")


def _block_ends(text: str) -> list[int]:
    """Return, for each place in a text, where the braces end that are open there, or -1 where they do not.

    A brace in a string is none; a quote that nothing closes begins no string. What follows decides, so it is read from
    its end: once, however many braces there are.
    """
    string_ends, ends = [-1] * (len(text) + 2), [-1] * (len(text) + 2)
    for place in range(len(text) - 1, -1, -1):
        char, after = text[place], place + 1
        string_ends[place] = after if char == '"' else string_ends[after + (char == "\\")]
        if char == "}":
            ends[place] = after
            continue
        if char == "{":
            after = ends[after]
        elif char == '"' and string_ends[after] >= 0:
            after = string_ends[after]
        ends[place] = ends[after] if after >= 0 else -1
    return ends


def parse_score(value: JsonValue, *, metric: str) -> int:
    """Return a score from 1 to 5: ``4``, ``4.0``, ``"4"``, ``"4/5"`` and ``"4 out of 5"`` are 4.

    Raises:
        ReplyError: it is no whole number or lies outside 1 to 5.
    """
    score: int | None = None
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        score = int(value)
    elif isinstance(value, str) and (match := _SCORE.fullmatch(value)) and len(match[1]) < 9:
        score = int(match[1])
    if score is None or not MIN_SCORE <= score <= MAX_SCORE:
        raise ReplyError(f"metric {metric!r}: expected a whole score from {MIN_SCORE} to {MAX_SCORE}, got {value!r}")
    return score


def parse_critique(text: str, *, metrics: Sequence[Metric]) -> Critique:
    """Return the critique in a critic's reply: one score for each metric asked for, in the order asked.

    Raises:
        ReplyError: no JSON object, a metric without a score, or a score that is none.
    """
    entries = _entries_by_name(extract_json(text))
    scores = []
    for metric in metrics:
        entry = entries.get(metric_key(metric.name))
        if entry is None:
            raise ReplyError(f"no score for metric {metric.name!r} (got {', '.join(sorted(entries)) or 'none'})")
        score, rationale = _read_entry(entry)
        scores.append(
            MetricScore(metric=metric.name, score=parse_score(score, metric=metric.name), rationale=rationale)
        )
    return Critique(scores=tuple(scores))


def parse_critique_published(text: str) -> Critique:
    """Return what the published code makes of a critic's reply: whatever metrics it names, whatever the scores.

    Raises:
        ReplyError: no JSON object, or a score that Python's ``int`` refuses (there: a crash).
    """
    scores = []
    for name, entry in extract_json(text).items():
        score, rationale = _read_entry(entry)
        if not isinstance(score, str | int | float):
            raise ReplyError(f"metric {name!r}: expected a number, got {score!r}")
        try:
            scores.append(MetricScore(metric=name, score=int(score), rationale=rationale))
        except (ValueError, OverflowError) as error:
            raise ReplyError(f"metric {name!r}: expected a number, got {score!r}") from error
    if not scores:
        raise ReplyError("expected at least one scored metric, got an empty object")
    return Critique(scores=tuple(scores))


def parse_metric_selection(
    text: str, *, known: Sequence[Metric], max_metrics: int = DEFAULT_MAX_METRICS
) -> MetricSelection:
    """Return the chosen metrics: known names in any spelling, new ones with their definitions, the first few of them.

    Raises:
        ReplyError: no JSON object, or none of the names can be used.
    """
    reply = extract_json(text)
    nested = reply.get("aspects_selection")
    body = nested if isinstance(nested, dict) else reply
    by_name = {metric_key(metric.name): metric for metric in known}
    chosen: dict[str, Metric] = {}
    names = body.get("metrics", body.get("selected_aspects"))
    new = body.get("new_metrics")
    for entry in [*(names if isinstance(names, list) else []), *(new if isinstance(new, list) else [])]:
        metric = _read_metric(entry, by_name)
        if metric is not None:
            chosen.setdefault(metric_key(metric.name), metric)
    if not chosen:
        raise ReplyError(f"expected 1 to {max_metrics} metric names, got {shorten(json.dumps(names))}")
    reasoning = body.get("reasoning")
    return MetricSelection(
        metrics=tuple(chosen.values())[:max_metrics], reasoning=reasoning if isinstance(reasoning, str) else ""
    )


def parse_rewrite(text: str, *, is_compat: bool = False) -> str:
    r"""Return the new system prompt in an optimizer's reply.

    A prompt written on one line with literal ``\n`` is unfolded; under compat every ``\n`` is, as published.

    Raises:
        ReplyError: no JSON object, no prompt in it, or the placeholder of a prompt alone.
    """
    prompt = extract_json(text).get("new_system_prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ReplyError(f"expected a text under 'new_system_prompt', got {shorten(json.dumps(prompt))}")
    if is_compat or ("\n" not in prompt and "\\n" in prompt):
        prompt = prompt.replace("\\n", "\n")
    prompt = clean_prompt(prompt)
    if not prompt:
        raise ReplyError("expected a text under 'new_system_prompt', got characters that nobody sees")
    if not is_compat and _PLACEHOLDER.fullmatch(prompt):
        # Weak models hand the form back as they were shown it.
        raise ReplyError(
            f"expected a prompt under 'new_system_prompt', got what stands in its place: {shorten(prompt)}"
        )
    return prompt


def clean_prompt(prompt: str) -> str:
    """Return a model's prompt without what nobody sees in it; its role tags lose their brackets."""
    return defuse_roles(strip_unseen(prompt)).strip()


def _entries_by_name(reply: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Accept ``{name: entry}``, ``{"scores": {name: entry}}`` and ``{"scores": [{"metric": name, ...}]}``."""
    body: JsonValue = reply.get("scores", dict(reply))
    if isinstance(body, list):
        return {
            metric_key(str(entry.get("metric", entry.get("name", "")))): entry
            for entry in body
            if isinstance(entry, dict)
        }
    return {metric_key(name): entry for name, entry in body.items()} if isinstance(body, dict) else {}


def _read_entry(entry: JsonValue) -> tuple[JsonValue, str]:
    """Return score and rationale of one metric's entry, which may be the bare score."""
    if not isinstance(entry, dict):
        return entry, ""
    rationale = entry.get("rationale", entry.get("reason", ""))
    return entry.get("score"), rationale if isinstance(rationale, str) else json.dumps(rationale)


def _read_metric(entry: JsonValue, known: Mapping[str, Metric]) -> Metric | None:
    name, definition = (entry.get("name"), entry.get("definition")) if isinstance(entry, dict) else (entry, None)
    if not isinstance(name, str) or not metric_key(name):
        return None
    if metric_key(name) in known:
        return known[metric_key(name)]
    if isinstance(definition, str) and definition.strip():
        return Metric(name=" ".join(name.split()), definition=" ".join(definition.split()))
    return None
