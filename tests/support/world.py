"""A synthetic world in which prompts have a known quality, so that searches compare at equal numbers of calls.

It deals in plain values; an adapter turns the project's model requests into calls of ``World``. All that it says
is a pure function of the world's seed and the arguments (SHA hashes, no global generator), the same in any process.

The mechanism, with its simplifications:

- A prompt has a level of 0 to 10 for each of 14 metrics. Texts by ``rewrite`` carry the levels in readable lines;
  any other text gets 2 to 4 per metric from its hash. Nothing else about the wording matters, except that every
  distinct text draws its own noise.
- A query has 2 to 5 relevant metrics (some metrics are common, some rare), each with a weight (how strongly the
  prompt's level shows in the response) and a difficulty; difficulties of one query are correlated.
- The realised score of a response on a metric is ``1 + 4 * sigmoid(z)``, ``z = offset - difficulty + weight * slope *
  (level - 3) / 10 + noise``. The noise belongs to the pair (prompt, query): a part that all metrics of the response
  share and a part of its own. It is what one sees of a prompt on one query by luck; it is redrawn for a new text, even
  when only one level changed, so it is an upper bound on how erratically real prompts behave.
- The judge adds a shared and an own error per metric and rounds to whole scores. Asked again, it says the same.
- The optimizer knows nothing but the feedback. A rewrite makes 1 to 4 edits, whatever the amount of feedback, aimed
  at metrics in proportion to what they lack of 5 in the mean over the feedback; an edit takes effect less often the
  less is lacking and the higher the level already is. Room is limited: each metric that no feedback mentions may lose
  a level, the more likely the fuller the prompt is (forgetting, hence overfitting to what was criticised). The number
  of queries enters nowhere: more feedback names more metrics and averages more noise, and costs more calls.
- A level that fell below its best in the former prompts has a small chance to be restored. Some rewrites are plainly
  bad, a few repeat the parent or the sibling before.

What it leaves out: wording, length, interactions between metrics, rewrites that change the task, judges biased
towards a prompt or a style, feedback whose rationale says more than the score.

It was calibrated on the figures that tests/support_tests/test_world.py states and on one-step effects of ``rewrite``
and unselected chains of them; never on a search.
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist

INITIAL_PROMPT = "You are a helpful assistant."
MAX_LEVEL = 10

_POPULARITY = {
    "Helpfulness": 10.0,
    "Clarity": 8.0,
    "Factuality": 8.0,
    "Depth": 6.0,
    "Engagement": 4.0,
    "Conciseness": 4.0,
    "Safety": 4.0,
    "Compliance": 3.0,
    "Limitations": 3.0,
    "Critical-Thinking": 3.0,
    "Creativity": 2.5,
    "Interactivity": 2.0,
    "Empathy": 2.5,
    "Sensitivity": 2.5,
}
METRICS = tuple(_POPULARITY)

# The realised score, on the logistic scale.
_OFFSET = -0.5
_SLOPE = 5.6
_WEIGHT_RANGE = (0.7, 1.3)
_DIFFICULTY_SHARED_SD = 0.6
_DIFFICULTY_OWN_SD = 0.45
_NOISE_SHARED_SD = 0.45
_NOISE_OWN_SD = 0.45

# The judge, in points of the scale 1 to 5.
_JUDGE_SHARED_SD = 0.25
_JUDGE_OWN_SD = 0.45
_UNMENTIONED_SCORE = 1.5

# The optimizer.
_EDIT_COUNTS = (1, 2, 2, 3, 3, 4)
_LACK_FOR_FULL_EFFECT = 2.5
_TWO_LEVELS_SHARE = 0.25
_FORGET_BASE, _FORGET_FULL = 0.03, 0.09
_RESTORE_SHARE = 0.1
_BAD_SHARE = 0.12
_PARENT_SHARE = 0.02
_SIBLING_SHARE = 0.03

_TASKS = ("Explain", "Compare", "Summarise", "Plan", "Question", "Describe", "Draft a note on", "Give advice about")
_TOPICS = (
    "tides", "a family budget", "vaccines", "moving abroad", "recursion", "a lost friendship", "solar panels",
    "the French Revolution", "locksmithing", "a first marathon", "bread without yeast", "compound interest",
    "an unfair manager", "black holes", "tax deadlines", "a bedtime story", "old medication", "chess openings",
)  # fmt: skip
_READERS = ("a child", "a beginner", "an expert", "my team", "a worried parent", "someone in a hurry", "a sceptic")

_LEVEL_LINE = re.compile(r"^[ \t]*-[ \t]*([A-Za-z-]+):[ \t]*level[ \t]+(\d{1,4})[ \t]*$", re.MULTILINE)
_SCORE_LINE = re.compile(r"^([A-Za-z-]+) came out at (\d\.\d\d) of 5\.$", re.MULTILINE)
_NORMAL = NormalDist()

Feedback = tuple[str, Mapping[str, int]]
"""What the optimizer sees of one rollout: the query and the critic's score per metric."""


@dataclass(frozen=True, slots=True)
class MetricDemand:
    """What one query asks of one metric."""

    metric: str
    weight: float
    """How strongly the prompt's level shows in the response; 1 on average."""
    difficulty: float
    """Subtracted on the logistic scale; 0 on average."""


@dataclass(frozen=True)
class World:
    """Queries, a base model, a judge and an optimizer with known truth."""

    seed: int
    num_queries: int = 600
    noise: float = 1.0
    """Scales the noise of responses and of the judge; 0 leaves queries that differ and scores rounded to whole ones."""
    missing_rate: float = 0.0
    """Share of (query, response) pairs whose critique cannot be read."""
    easy_rate: float = 0.0
    """Share of (query, response) pairs that the judge gives 5 throughout."""
    num_heldout: int = 200
    """How many of the queries, the last ones, are held out."""

    def __post_init__(self) -> None:
        """Refuse a world without training queries or without held-out ones."""
        if not 0 < self.num_heldout < self.num_queries:
            raise ValueError(f"expected 0 < num_heldout < {self.num_queries} (num_queries), got {self.num_heldout}")

    @cached_property
    def queries(self) -> list[str]:
        """All query texts, distinct, the held-out ones last."""
        return [_query_text(self.seed, index) for index in range(self.num_queries)]

    @property
    def train_queries(self) -> list[str]:
        """The queries that a search may use."""
        return self.queries[: -self.num_heldout]

    @property
    def heldout_queries(self) -> list[str]:
        """The queries that ``quality`` averages over."""
        return self.queries[-self.num_heldout :]

    def demands(self, query: str) -> tuple[MetricDemand, ...]:
        """Return the query's relevant metrics with weight and difficulty; any text is a query."""
        return _demands(self.seed, query.strip())

    def select_metrics(self, query: str) -> list[str]:
        """Return the names of the query's 2 to 5 relevant metrics."""
        return [demand.metric for demand in self.demands(query)]

    def realised_scores(self, prompt: str, query: str) -> dict[str, float]:
        """Return the true score, 1 to 5, of the response to the query per relevant metric."""
        levels = levels_of(prompt)
        demands = self.demands(query)
        shared, *own = _gauss(1 + len(demands), "respond", self.seed, prompt.strip(), query.strip())
        scores = {}
        for demand, own_noise in zip(demands, own, strict=True):
            z = _OFFSET - demand.difficulty + demand.weight * _SLOPE * (levels[demand.metric] - 3) / MAX_LEVEL
            z += self.noise * (_NOISE_SHARED_SD * shared + _NOISE_OWN_SD * own_noise)
            scores[demand.metric] = 1 + 4 / (1 + math.exp(-z))
        return scores

    def respond(self, prompt: str, query: str) -> str:
        """Return the base model's response, which tells a judge its realised scores to two decimals."""
        scores = self.realised_scores(prompt, query)
        lines = [f"Response {_digest('response', prompt.strip(), query.strip())[:8]} to: {query.strip()[:80]}"]
        lines += [f"{metric} came out at {score:.2f} of 5." for metric, score in scores.items()]
        return "\n".join(lines)

    def critique(self, query: str, response: str, *, metrics: Sequence[str]) -> dict[str, int] | None:
        """Return the judge's score, 1 to 5, for each of ``metrics``, or ``None`` for a critique that cannot be read.

        A metric that the response says nothing about (a cut response, a metric the query does not have) is scored
        around 1.5.
        """
        missing, easy = _uniforms(2, "critique", self.seed, query.strip(), response.strip())
        if missing < self.missing_rate:
            return None
        if easy < self.easy_rate:
            return dict.fromkeys(metrics, 5)
        realised = {metric: float(score) for metric, score in _SCORE_LINE.findall(response)}
        (shared,) = _gauss(1, "mood", self.seed, query.strip(), response.strip())
        scores = {}
        for metric in metrics:
            (own,) = _gauss(1, "judge", self.seed, query.strip(), response.strip(), metric)
            error = self.noise * (_JUDGE_SHARED_SD * shared + _JUDGE_OWN_SD * own)
            scores[metric] = min(5, max(1, round(realised.get(metric, _UNMENTIONED_SCORE) + error)))
        return scores

    def rewrite(
        self, prompt: str, feedback: Sequence[Feedback], *, history: Sequence[str], n: int, seed: int
    ) -> list[str]:
        """Return ``n`` rewrites of the prompt; a larger ``n`` continues the list of a smaller one.

        Args:
            prompt: The prompt to improve.
            feedback: What the prompt got, query by query.
            history: Former prompts of the path.
            n: How many rewrites.
            seed: Which draw of the optimizer.
        """
        seen = [[query, dict(scores)] for query, scores in feedback]
        key = _digest("rewrite", self.seed, prompt, json.dumps(seen, sort_keys=True), json.dumps(list(history)), seed)
        lacks = _lacks(feedback)
        best = _best_levels(history)
        samples: list[str] = []
        for index in range(n):
            rng = random.Random(f"{key}/{index}")
            draw = rng.random()
            if draw < _PARENT_SHARE:
                samples.append(prompt)
            elif samples and draw < _PARENT_SHARE + _SIBLING_SHARE:
                samples.append(samples[-1])
            elif draw > 1 - _BAD_SHARE:
                samples.append(prompt_with_levels(_damaged(levels_of(prompt), rng)))
            else:
                samples.append(prompt_with_levels(_edited(levels_of(prompt), lacks, best=best, rng=rng)))
        return samples

    def quality(self, prompt: str) -> float:
        """Return the true mean score, 1 to 5, over the held-out queries: no judge, each query counting the same."""
        totals = 0.0
        for query in self.heldout_queries:
            scores = self.realised_scores(prompt, query)
            totals += sum(scores.values()) / len(scores)
        return totals / self.num_heldout


def prompt_with_levels(levels: Mapping[str, int]) -> str:
    """Return the prompt text that carries these levels; metrics that are not given are at 0."""
    lines = [f"- {metric}: level {levels.get(metric, 0)}" for metric in METRICS]
    return "\n".join(["You are an assistant. Answer every request with these qualities in mind:", *lines])


@lru_cache(maxsize=4096)
def _cached_levels(prompt: str) -> tuple[int, ...]:
    stated = {metric: min(MAX_LEVEL, int(level)) for metric, level in _LEVEL_LINE.findall(prompt)}
    guesses = _uniforms(len(METRICS), "level", prompt)
    return tuple(stated.get(metric, 2 + int(3 * guess)) for metric, guess in zip(METRICS, guesses, strict=True))


def levels_of(prompt: str) -> dict[str, int]:
    """Return the prompt's level, 0 to 10, per metric; where the text states none, 2 to 4 from its hash."""
    return dict(zip(METRICS, _cached_levels(prompt.strip()), strict=True))


def _lacks(feedback: Sequence[Feedback]) -> dict[str, float]:
    """Return what each metric in the feedback lacks of 5 on average; without feedback, the same for all metrics."""
    scores_by_metric: dict[str, list[int]] = {}
    for _, scores in feedback:
        for metric, score in scores.items():
            if metric in _POPULARITY:
                scores_by_metric.setdefault(metric, []).append(score)
    return {metric: 5 - sum(scores) / len(scores) for metric, scores in scores_by_metric.items()}


def _best_levels(prompts: Sequence[str]) -> dict[str, int]:
    vectors = [levels_of(prompt) for prompt in prompts]
    return {metric: max((levels[metric] for levels in vectors), default=0) for metric in METRICS}


def _edited(
    levels: dict[str, int], lacks: Mapping[str, float], *, best: Mapping[str, int], rng: random.Random
) -> dict[str, int]:
    """Return the levels after an ordinary rewrite: edits where something lacks, forgetting where nothing was said."""
    forget_share = _FORGET_BASE + _FORGET_FULL * sum(levels.values()) / (MAX_LEVEL * len(METRICS))
    # Without feedback the edits go anywhere, and everything may be forgotten.
    wanted = dict(lacks) if lacks else dict.fromkeys(METRICS, 1.0)
    edited = dict(levels)
    for _ in range(rng.choice(_EDIT_COUNTS)):
        if not any(wanted.values()):
            break
        (metric,) = rng.choices(list(wanted), weights=list(wanted.values()))
        lack = wanted.pop(metric)
        effect = (0.9 - 0.05 * levels[metric]) * min(1.0, lack / _LACK_FOR_FULL_EFFECT)
        if rng.random() < effect:
            edited[metric] += 2 if rng.random() < _TWO_LEVELS_SHARE else 1
    for metric in METRICS:
        if metric not in lacks and rng.random() < forget_share:
            edited[metric] -= 1
        elif levels[metric] < best[metric] and rng.random() < _RESTORE_SHARE:
            edited[metric] += 1
    return {metric: min(MAX_LEVEL, max(0, level)) for metric, level in edited.items()}


def _damaged(levels: dict[str, int], rng: random.Random) -> dict[str, int]:
    """Return the levels after a bad rewrite: three to six metrics lose one to three levels."""
    for metric in rng.sample(METRICS, rng.randint(3, 6)):
        levels[metric] = max(0, levels[metric] - rng.randint(1, 3))
    return levels


def _query_text(seed: int, index: int) -> str:
    rng = random.Random(f"{seed}/query/{index}")
    return f"{rng.choice(_TASKS)} {rng.choice(_TOPICS)} for {rng.choice(_READERS)} (request {index + 1:04d})."


@lru_cache(maxsize=65536)
def _demands(seed: int, query: str) -> tuple[MetricDemand, ...]:
    rng = random.Random(f"{seed}/demands/{query}")
    popularity = dict(_POPULARITY)
    shared = rng.gauss(0, _DIFFICULTY_SHARED_SD)
    demands = []
    for _ in range(rng.randint(2, 5)):
        (metric,) = rng.choices(list(popularity), weights=list(popularity.values()))
        del popularity[metric]
        demands.append(MetricDemand(metric, rng.uniform(*_WEIGHT_RANGE), shared + rng.gauss(0, _DIFFICULTY_OWN_SD)))
    return tuple(demands)


def _packed(parts: tuple[str | int, ...]) -> bytes:
    """Return the parts as bytes, each with its length before it, so that different parts never look the same."""
    return b"".join(b"%d:%b" % (len(text), text) for text in (str(part).encode() for part in parts))


def _digest(*parts: str | int) -> str:
    return hashlib.sha256(_packed(parts)).hexdigest()


def _uniforms(count: int, *parts: str | int) -> list[float]:
    """Return numbers between 0 and 1, both excluded, that only the parts decide."""
    bits = hashlib.shake_256(_packed(parts)).digest(6 * count)
    return [(int.from_bytes(bits[6 * i : 6 * i + 6]) + 0.5) / 2**48 for i in range(count)]


def _gauss(count: int, *parts: str | int) -> list[float]:
    return [_NORMAL.inv_cdf(value) for value in _uniforms(count, *parts)]
