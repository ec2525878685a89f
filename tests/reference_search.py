"""The search once more, plainly: one call after the other, no graph, no prompts, no ledger.

Restated from design.md (section 2) and published-search.md, so that the graph can be held against it. It asks the
synthetic world directly and notes each distinct request once, as the ledger would pay for it.
"""

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from drpo_graph.data.order import order_queries
from drpo_graph.records import Query
from drpo_graph.settings.settings import Settings
from tests.support.world import World

Scores = dict[str, int]
SemanticRequest = tuple[object, ...]
"""``("metrics", query)``, ``("base", prompt, query)``, ``("critic", query, response, metrics)``, ``("repair", query,
response, metrics)`` or ``("optimizer", prompt, feedback, history, seed, n)``."""


@dataclass
class Tried:
    """A prompt in its place in the tree."""

    id: str
    parent_id: str | None
    depth: int
    prompt: str
    origin: str
    versions: list[str]
    """Prompts of its path as the optimizer is shown them, oldest first, its own last."""
    former_rewards: list[float]
    """Rewards of its ancestors from depth 1 on, unscored ones left out."""
    rewards: dict[str, float | None] = field(default_factory=dict)
    """By query id."""
    query_ids: list[str] = field(default_factory=list)
    """The queries it was last run on."""
    critiques: list[tuple[Query, Scores]] = field(default_factory=list)
    has_failed: bool = False
    reward: float | None = None
    path_reward: float | None = None

    @property
    def own_rewards(self) -> list[float]:
        """Return the scored rewards from depth 1 to here."""
        is_counted = self.depth > 0 and self.reward is not None
        return [*self.former_rewards, self.reward] if is_counted else list(self.former_rewards)  # type: ignore[list-item]


@dataclass
class Level:
    """What a level came to."""

    query_ids: list[str]
    children: list[Tried]
    beam: list[Tried]
    is_easy: bool
    max_depth: int


@dataclass
class Found:
    """A finished search."""

    levels: list[Level] = field(default_factory=list)
    has_stalled: bool = False
    num_repeats: int = 0
    """Levels that were run again, on other queries."""
    keeps_former_beam: bool = False
    """The last level could not be scored, and had no other queries."""
    requests: Counter[SemanticRequest] = field(default_factory=Counter)
    has_settled: bool = False
    """It ended because nothing could change any more, or because ``stop_reward`` was reached."""
    is_published: bool = False
    """It went by the published code's rules."""
    has_run_out: bool = False
    """It ended for want of queries."""

    @property
    def candidates(self) -> list[Tried]:
        """Return every candidate in creation order."""
        return [child for level in self.levels for child in level.children]

    @property
    def best(self) -> Tried:
        """Return the delivered candidate: the first that beats the root on its queries, else that was not compared."""
        beam = self.levels[-1].beam
        if self.is_published:
            return beam[0]
        gains = [(one, self._gain_of(one)) for one in beam]
        better = [one for one, gain in gains if gain is not None and gain > 1e-9]
        return next(iter([*better, *(one for one, gain in gains if gain is None)]), self.candidates[0])

    def _gain_of(self, one: Tried) -> float | None:
        """Return the mean gain over the initial prompt, which may have been tried again, on the same queries."""
        initial: dict[str, float | None] = {}
        for other in self.candidates:
            if other.prompt == self.candidates[0].prompt:
                initial = {**other.rewards, **initial}
        if not set(one.query_ids) <= set(initial):
            return None
        pairs = [(one.rewards[query_id], initial[query_id]) for query_id in one.query_ids]
        gains = [own - former for own, former in pairs if own is not None and former is not None]
        return sum(gains) / len(gains) if gains else None

    @property
    def trace(self) -> list[str]:
        """Return the ids from the root to the delivered candidate."""
        by_id = {one.id: one for one in self.candidates}
        trace = [self.best.id]
        while (parent_id := by_id[trace[0]].parent_id) is not None:
            trace.insert(0, parent_id)
        return trace


def search(settings: Settings, world: World, queries: Sequence[str]) -> Found:
    """Return what the search finds."""
    return _Search(settings, world, queries).run()


class _Search:
    def __init__(self, settings: Settings, world: World, queries: Sequence[str]) -> None:
        self.settings = settings
        self.world = world
        records = [Query(id=f"query-{number:03d}", text=text) for number, text in enumerate(queries, 1)]
        self.queries = order_queries(records, seed=settings.seed, num_queries=settings.num_queries)
        self.found = Found(is_published=settings.is_compat)
        self.num_repeats = 0

    def run(self) -> Found:
        settings = self.settings
        max_depth = settings.depth - 1
        prompt = settings.initial_prompt
        children = [Tried("0", None, 0, prompt, "initial", versions=[prompt], former_rewards=[])]
        level, has_easy = 0, False
        num_unscored_levels = 0
        while True:
            for child in children:
                self.evaluate(child, level)
            is_scored = any(child.reward is not None for child in children)
            if not is_scored and num_unscored_levels == 0 and self.has_others(level):
                # Once more, on the next queries.
                self.num_repeats, num_unscored_levels = self.num_repeats + 1, 1
                self.found.num_repeats = self.num_repeats
                continue
            former = self.found.levels[-1].beam if self.found.levels else []
            is_last = level + 1 > max_depth or not self.level_queries(level + 1)
            self.found.keeps_former_beam = bool(former) and is_last and not is_scored
            beam = former if self.found.keeps_former_beam else self.choose_beam(children, level)
            ids = [query.id for query in self.level_queries(level)]
            self.found.levels.append(Level(ids, children, beam, has_easy, max_depth))
            num_unscored_levels = 0 if is_scored else num_unscored_levels + 1
            if num_unscored_levels == 2:
                self.stall(level + 1, max_depth)
                return self.found
            level += 1
            if self.is_over(beam, level, max_depth):
                return self.found
            has_easy = any(self.is_easy(parent) for parent in beam)
            if has_easy and max_depth < settings.depth - 1 + settings.max_depth_increase:
                max_depth += 1
            children = [child for rank, parent in enumerate(beam) for child in self.expand(parent, level, rank)]

    def has_others(self, level: int) -> bool:
        """Return whether the next queries are others than a level's."""
        return bool({one.id for one in self.level_queries(level + 1)} - {one.id for one in self.level_queries(level)})

    def level_queries(self, level: int) -> list[Query]:
        """Return a level's queries; each level that was run twice has used up a round of them."""
        settings, m = self.settings, self.settings.queries_per_level
        level += self.num_repeats
        if settings.query_policy == "stream":
            return list(self.queries[level * m : (level + 1) * m])
        pool = self.queries[: settings.pool_size or 16 * m]
        if len(pool) <= m:
            return list(pool)
        places = sorted(random.Random(f"{settings.seed}/pool/{level}").sample(range(len(pool)), m))
        return [pool[place] for place in places]

    def is_over(self, beam: list[Tried], level: int, max_depth: int) -> bool:
        """Return whether there is no such level any more."""
        settings, queries = self.settings, self.level_queries(level)
        if level > max_depth or not queries:
            self.found.has_run_out = not queries
            return True
        stop = settings.stop_reward
        is_reached = stop is not None and any(one.path_reward is not None and one.path_reward >= stop for one in beam)
        is_fixed = (
            settings.query_policy == "pool"
            and len(self.queries[: settings.pool_size or 16 * settings.queries_per_level]) <= settings.queries_per_level
        )
        is_settled = not settings.is_compat and is_fixed and all(map(self.is_easy, beam))
        self.found.has_settled = is_reached or is_settled
        return self.found.has_settled

    def stall(self, next_level: int, max_depth: int) -> None:
        self.found.has_stalled = True
        if self.settings.stop_reward is None and next_level <= max_depth:
            # Their metrics were selected beside the level that gave nothing.
            for query in self.level_queries(next_level):
                self.note("metrics", query.text)

    def is_easy(self, candidate: Tried) -> bool:
        if self.settings.is_compat and candidate.has_failed:
            return True
        scores = [score for _, critique in candidate.critiques for score in critique.values()]
        if candidate.reward is None:
            return False
        return all(score == 5 for score in scores) or candidate.reward > self.settings.skip_threshold

    def expand(self, parent: Tried, level: int, rank: int) -> list[Tried]:
        """Return the parent's children."""
        # An unscored parent is criticised again where the queries are others; on the same ones it is rewritten blind.
        awaits_critique = parent.reward is None and [one.id for one in self.level_queries(level)] != parent.query_ids
        if awaits_critique or self.is_easy(parent):
            plans = [(parent.prompt, "kept")]
        else:
            plans = [(prompt, "rewrite") for prompt in self.rewrite(parent, level, rank)]
            plans += [(parent.prompt, "kept")] if self.settings.keep_parents else []
        children = []
        for place, (prompt, origin) in enumerate(plans):
            is_version = origin == "rewrite" or self.settings.is_compat
            versions = [*parent.versions, prompt] if is_version else parent.versions
            children.append(
                Tried(
                    id=f"{level}.{rank}.{place}",
                    parent_id=parent.id,
                    depth=level,
                    prompt=prompt,
                    origin=origin,
                    versions=versions[-self.settings.history_window :],
                    former_rewards=parent.own_rewards,
                )
            )
        return children

    def rewrite(self, parent: Tried, level: int, rank: int) -> list[str]:
        settings = self.settings
        seed = 0 if settings.is_compat else random.Random(f"{settings.seed}/rewrite/{level}/{rank}").randrange(2**31)
        worst_first = sorted(parent.critiques, key=lambda one: _mean(one[1].values()))
        feedback = [(query.text, scores) for query, scores in worst_first[: settings.max_critiques_shown]]
        history = parent.versions[:-1]
        frozen = tuple((text, tuple(scores.items())) for text, scores in feedback)
        self.note("optimizer", parent.prompt, frozen, tuple(history), seed, settings.n_actions)
        return self.world.rewrite(parent.prompt, feedback, history=history, n=settings.n_actions, seed=seed)

    def evaluate(self, candidate: Tried, level: int) -> None:
        """Run the candidate on the level's queries."""
        candidate.query_ids = [query.id for query in self.level_queries(level)]
        for query in self.level_queries(level):
            metrics = self.world.select_metrics(query.text)
            response = self.world.respond(candidate.prompt, query.text)
            scores = self.world.critique(query.text, response, metrics=metrics)
            self.note("metrics", query.text)
            self.note("base", candidate.prompt, query.text)
            self.note_critique((query.text, response, tuple(metrics)), is_readable=scores is not None)
            if scores is None:
                candidate.has_failed = True
                candidate.rewards[query.id] = 0.0 if self.settings.is_compat else None
            else:
                candidate.critiques.append((query, scores))
                candidate.rewards[query.id] = _mean(scores.values())
        latest = [candidate.rewards[one] for one in candidate.query_ids]
        scored = [reward for reward in latest if reward is not None]
        candidate.reward = _mean(scored) if scored else None
        candidate.path_reward = self.path_reward(candidate)

    def path_reward(self, candidate: Tried) -> float | None:
        aggregate = self.settings.reward_aggregate
        if aggregate == "auto":
            aggregate = "mean" if self.settings.beam_size > 1 else "last"
        if candidate.depth == 0 or aggregate == "last":
            return candidate.reward
        total = 0.0
        for reward in candidate.own_rewards:
            total += reward
        if not candidate.own_rewards:
            return None
        return total if aggregate == "sum" else total / len(candidate.own_rewards)

    def choose_beam(self, children: list[Tried], level: int) -> list[Tried]:
        """Return the candidates that go on, best first."""
        settings = self.settings
        contenders = [one for one in children if one.reward is not None] or children
        contenders = sorted(contenders, key=_descending)
        if settings.deduplicate:
            prompts = [one.prompt for one in contenders]
            contenders = [one for place, one in enumerate(contenders) if one.prompt not in prompts[:place]]
        if settings.min_reward is not None:
            contenders = [one for one in contenders if (one.path_reward or 0) >= settings.min_reward] or contenders
        if settings.beam_sampling == "stochastic":
            contenders = self.draw(contenders, level)
        return contenders[: settings.beam_size]

    def draw(self, contenders: list[Tried], level: int) -> list[Tried]:
        """Draw the beam one by one, in proportion to exp(path reward / temperature)."""
        settings = self.settings
        rng = random.Random(f"{settings.seed}/beam/{level}")
        temperature = settings.beam_temperature * settings.beam_temperature_decay ** (level - 1)
        left, drawn = list(contenders), []
        best = left[0].path_reward
        for _ in range(min(settings.beam_size, len(left))):
            if best is None:
                weights = [1.0] * len(left)
            else:
                lacks = [math.inf if one.path_reward is None else best - one.path_reward for one in left]
                weights = [math.exp(-lack / temperature) for lack in lacks]
            place = rng.choices(range(len(left)), weights)[0] if any(weights) else 0
            drawn.append(left.pop(place))
        return [one for one in contenders if one in drawn]

    def note(self, *request: object) -> None:
        """Count a request; the same one again costs nothing."""
        self.found.requests[request] = 1

    def note_critique(self, request: tuple[object, ...], *, is_readable: bool) -> None:
        """Count a critique: one that cannot be read is asked for again and repaired once, as published only once."""
        is_final = is_readable or self.settings.is_compat
        self.found.requests["critic", *request] = 1 if is_final else self.settings.max_reply_attempts
        if not is_final:
            self.note("repair", *request)


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def _descending(candidate: Tried) -> float:
    return math.inf if candidate.path_reward is None else -candidate.path_reward
