"""Read model replies: pure, lenient about form, strict about content.

Small models wrap JSON in prose or code fences; that is accepted. A score out of range or a missing metric is not
guessed at: it raises :class:`~drpo_graph.errors.ReplyError`, and the sample stays unscored with that reason.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from pydantic import JsonValue

from drpo_graph.errors import ReplyError
from drpo_graph.models.answers import read_answer
from drpo_graph.parts.near_json import find_block_ends, find_swallowed, read_near_json
from drpo_graph.prompts.fencing import defuse_roles
from drpo_graph.records import MAX_SCORE, MIN_SCORE, Critique, Metric, MetricScore, MetricSelection, metric_key
from drpo_graph.safety.texts import clean_surrogates, shorten, strip_unseen

DEFAULT_MAX_METRICS = 5
_SCORE = re.compile(
    r"[\s*]*(\d+)(?:\.0+)?\s*(?:/\s*5|out of 5)?[\s*]*(?:\(.*\)|[-–—:,.][^\d]*)?\s*", re.IGNORECASE | re.DOTALL
)
_NUMBERING = re.compile(r"\s*(?:\d+\s*[.):]|[-*•])\s+")
_DESCRIPTION = re.compile(r"\s*(?:[:(–—]|\s-\s).*", re.DOTALL)
_SCORE_NAMES = ("score", "rating")
_RATIONALE_NAMES = ("rationale", "reason", "reasoning", "explanation", "justification")
_MAX_WRAPPERS = 3
_MAX_NEAR_JSON = 8
"""Braces that are tried as the beginning of what is nearly JSON."""
_FOLDED = re.compile(r"""[^\\]*(?:(?<![\s`'"\[(/])(?<!\b[A-Za-z]:)(?:\\n)+(?![a-z`'"\])+*?|])[^\\]*)+""")
_PLACEHOLDER = re.compile(r"<[^<>\n]+>|\[[^\[\]\n]+\]")
_PLACEHOLDER_WORDS = re.compile(r"(?:the|your|complete|current|new|improved|better|system|prompt|text|here|goes)*")
_MAX_OTHERS = 64
"""Brackets that are tried as the beginning of a further object."""
_OPENING = re.compile(r"[{\[]")
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
    num_near = 0
    while position >= 0:
        try:
            value, _ = _decoder.raw_decode(answer, position)
            if "\\ud" in answer[position:].lower():
                value = json.loads(clean_surrogates(json.dumps(value, ensure_ascii=False)))
        except (ValueError, RecursionError):  # Not JSON, a number of thousands of digits, or nested without end.
            value = None
            num_near += 1
            if num_near <= _MAX_NEAR_JSON:
                value = read_near_json(answer, position)
        if isinstance(value, dict):
            return value, said.start + position
        ends = find_block_ends(answer) if ends is None else ends
        position = answer.find("{", position + 1) if ends[position + 1] >= 0 else -1
    raise ReplyError(f"expected a JSON object, got {shorten(text)!r}")


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
        ReplyError: no JSON object, a metric without a score, a score that is none, or a further object with other
            scores: which of them is meant, a quoted one or a draft before the last, nobody can tell.
    """
    reply, rest = _read_listed(text)
    critique = _read_critique(reply, metrics)
    for other in _find_others(rest):
        try:
            again = _read_critique(other, metrics)
        except ReplyError:
            continue
        given = [[one.score for one in read.scores] for read in (critique, again)]
        if given[0] != given[1]:
            raise ReplyError(f"expected one JSON object, got two with different scores: {given[0]} and {given[1]}")
    return critique


def _read_critique(reply: JsonValue, metrics: Sequence[Metric]) -> Critique:
    entries = _entries_by_name(reply, metrics)
    scores = []
    for metric in metrics:
        entry = _find_entry(entries, metric.name)
        if entry is None:
            got = ", ".join(sorted(map(metric_key, entries))) or "none"
            raise ReplyError(f"no score for metric {metric.name!r} (got {got})")
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
        _, rationale = _read_entry(entry)
        score = entry.get("score") if isinstance(entry, dict) else entry
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
    body = _unwrap(extract_json(text), ("metrics", "selectedaspects", "newmetrics"))
    by_name = {metric_key(metric.name): metric for metric in known}
    chosen: dict[str, Metric] = {}
    names, new = _field(body, "metrics", "selected_aspects"), _field(body, "new_metrics")
    for entry in [*(names if isinstance(names, list) else []), *(new if isinstance(new, list) else [])]:
        metric = _read_metric(entry, by_name)
        if metric is not None:
            chosen.setdefault(metric_key(metric.name), metric)
    if not chosen:
        raise ReplyError(f"expected 1 to {max_metrics} metric names, got {shorten(json.dumps(names))}")
    reasoning = _field(body, "reasoning")
    return MetricSelection(
        metrics=tuple(chosen.values())[:max_metrics], reasoning=reasoning if isinstance(reasoning, str) else ""
    )


def parse_rewrite(text: str, *, is_compat: bool = False) -> str:
    r"""Return the new system prompt in an optimizer's reply.

    A prompt written on one line with literal ``\n`` is unfolded; under compat every ``\n`` is, as published.

    Raises:
        ReplyError: no JSON object, no prompt in it, one whose backslashes may have been swallowed, or none at all.
    """
    prompt = read_text(text, "new_system_prompt", is_compat=is_compat)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ReplyError(f"expected a text under 'new_system_prompt', got {shorten(json.dumps(prompt))}")
    if is_compat or _is_folded(prompt):
        prompt = prompt.replace("\\n", "\n")
    prompt = clean_prompt(prompt)
    if not prompt:
        raise ReplyError("expected a text under 'new_system_prompt', got characters that nobody sees")
    if not is_compat and _PLACEHOLDER_WORDS.fullmatch(metric_key(_PLACEHOLDER.sub("", prompt))):
        # Weak models hand the form back as they were shown it.
        raise ReplyError(
            f"expected a prompt under 'new_system_prompt', got what stands in its place: {shorten(prompt)}"
        )
    return prompt


def read_text(text: str, name: str, *, is_compat: bool = False) -> JsonValue:
    """Return the value of a text's field in a reply, in a wrapper or not.

    Raises:
        ReplyError: no JSON object, or a text in which a backslash may have become a line end or a tab.
    """
    if is_compat:
        return extract_json(text).get(name)
    value = _field(_unwrap(extract_json(text), (metric_key(name),)), name)
    if isinstance(value, str) and (place := find_swallowed(value)) is not None:
        raise ReplyError(
            f"{name!r} may have lost a backslash near {place}: expected each backslash that is meant to be written "
            "twice, and no tabs"
        )
    return value


def clean_prompt(prompt: str) -> str:
    """Return a model's prompt without what nobody sees in it; its role tags lose their brackets."""
    return defuse_roles(strip_unseen(prompt)).strip()


def _is_folded(prompt: str) -> bool:
    """Return whether a prompt's line ends were written as two signs: no other backslash, and each where a line ends."""
    return "\n" not in prompt and _FOLDED.fullmatch(prompt) is not None


def _field(body: Mapping[str, JsonValue], *names: str) -> JsonValue:
    """Return the value under the first of these names, in any spelling that only one name of the body has."""
    for name in names:
        if name in body:
            return body[name]
        found = [value for key, value in body.items() if metric_key(key) == metric_key(name)]
        if len(found) == 1:
            return found[0]
    return None


def _unwrap(body: dict[str, JsonValue], keys: Collection[str]) -> dict[str, JsonValue]:
    """Return the object that has one of these keys: the body, or the only object in it, and so on."""
    for _ in range(_MAX_WRAPPERS):
        inner = [value for value in body.values() if isinstance(value, dict)]
        if len(inner) != 1 or any(metric_key(name) in keys for name in body):
            break
        body = inner[0]
    return body


def _read_listed(text: str) -> tuple[JsonValue, str]:
    """Return the JSON object in a reply, or the list of objects that it is the first of, and the text behind that."""
    value, start = find_json(text)
    # Without what a model thinks after its answer.
    said = read_answer(text, is_structured=True)
    answer, start = said.text, start - said.start
    head = answer[:start].rstrip()
    for place in (len(head) - 1, start) if head.endswith("[") else (start,):
        try:
            listed, end = _decoder.raw_decode(answer, place)
        except (ValueError, RecursionError):
            continue
        return (value if place == start else listed), answer[end:]
    end = find_block_ends(answer[start:])[1]
    return value, answer[start + end :] if end > 0 else ""


def _find_others(text: str) -> Iterator[JsonValue]:
    """Yield the JSON objects, and lists of them, in the text behind the first."""
    place, num_tries = 0, 0
    while (found := _OPENING.search(text, place)) and num_tries < _MAX_OTHERS:
        num_tries += 1
        try:
            value, place = _decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            place = found.end()
        else:
            yield value


def _entries_by_name(reply: JsonValue, metrics: Sequence[Metric]) -> dict[str, JsonValue]:
    """Return the entries of ``{name: entry}`` and ``[{"metric": name, ...}]``, or what stands so in a wrapper."""
    asked = {metric_key(metric.name) for metric in metrics}
    for _ in range(_MAX_WRAPPERS):
        if isinstance(reply, list):
            return _read_entries(reply)
        if not isinstance(reply, dict):
            return {}
        if any(key in asked for name in reply for key in (metric_key(name), _bare_key(name))):
            break
        inner: list[JsonValue] = [value for value in reply.values() if isinstance(value, dict | list)]
        if "scores" in reply:
            inner = [reply["scores"]]
        if len(inner) != 1:
            break
        reply = inner[0]
    return dict(reply) if isinstance(reply, dict) else _read_entries(reply) if isinstance(reply, list) else {}


def _read_entries(listed: Sequence[JsonValue]) -> dict[str, JsonValue]:
    entries: dict[str, JsonValue] = {}
    for entry in listed:
        if not isinstance(entry, dict):
            continue
        name = _field(entry, "metric", "name")
        entries |= entry if name is None else {str(name): entry}
    return entries


def _find_entry(entries: Mapping[str, JsonValue], name: str) -> JsonValue:
    """Return a metric's entry by its name, or by the only one that is it with a number before or words behind it."""
    for read in (metric_key, _bare_key):
        found = [entry for key, entry in entries.items() if read(key) == metric_key(name)]
        if found:
            return found[-1] if read is metric_key or len(found) == 1 else None
    return None


def _bare_key(name: str) -> str:
    """Return the key of a metric's name without a number before it and a description behind it."""
    return metric_key(_DESCRIPTION.sub("", _NUMBERING.sub("", name, count=1), count=1))


def _read_entry(entry: JsonValue) -> tuple[JsonValue, str]:
    """Return score and rationale of one metric's entry, which may be the bare score."""
    if not isinstance(entry, dict):
        return entry, ""
    rationale = _field(entry, *_RATIONALE_NAMES)
    told = rationale if isinstance(rationale, str) else "" if rationale is None else json.dumps(rationale)
    return _field(entry, *_SCORE_NAMES), told


def _read_metric(entry: JsonValue, known: Mapping[str, Metric]) -> Metric | None:
    name, definition = (entry.get("name"), entry.get("definition")) if isinstance(entry, dict) else (entry, None)
    if not isinstance(name, str) or not metric_key(name):
        return None
    for key in (metric_key(name), _bare_key(name) if definition is None else ""):
        if key in known:
            return known[key]
    if isinstance(definition, str) and definition.strip():
        return Metric(name=" ".join(name.split()), definition=" ".join(definition.split()))
    return None
