"""Lay down what a run starts from: its queries in order, its root candidate, its fingerprints. No model call."""

from collections.abc import Sequence
from typing import cast

from langgraph.runtime import Runtime
from pydantic import JsonValue, ValidationError

from drpo_graph.data.given import GivenQueries, as_queries
from drpo_graph.data.order import check_distinct, dataset_hash
from drpo_graph.errors import DatasetError, SettingsError
from drpo_graph.parts.rewards import MixedCritic
from drpo_graph.parts.rewrite_guards import check_fillable
from drpo_graph.parts.screens import check_screen
from drpo_graph.parts.stock_rewards import check_references
from drpo_graph.records import ROOT_ID, Query, RejectedRewrite, digest_json
from drpo_graph.safety.texts import clean_surrogates
from drpo_graph.search.announce import announce_candidate, announce_level, announce_run
from drpo_graph.search.beam import hash_prompt, refer_to
from drpo_graph.search.forecast import warn_at_start
from drpo_graph.search.hosting import check_can_pause
from drpo_graph.search.levels import draw_queries, order_drawn, prefetch_indices, query_indices
from drpo_graph.search.run_names import open_run
from drpo_graph.search.session import RunContext
from drpo_graph.search.state import BEGIN_WITH, STATE_FORMAT, SearchState
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import StoredCandidate


async def start_run(state: SearchState, runtime: Runtime[RunContext]) -> SearchState:
    """Return the state of a run that has evaluated nothing yet."""
    settings = runtime.context.settings
    check_screen(settings, runtime.context.components.screen)
    if settings.approve:
        check_can_pause()
    given = read_queries(state.get("queries", []), label="query")
    queries = order_drawn(draw_queries(given, settings), settings)
    validation = read_queries(state.get("validation_queries") or [], label="validation", is_optional=True)
    check_distinct(given, validation)
    if isinstance(critic := runtime.context.components.critic, MixedCritic):
        check_references(critic.functions, [*queries, *validation])
    prompt = _read_prompt(state.get("initial_prompt")) or settings.initial_prompt
    # An app fills its own templates.
    filled = [*queries, *validation] if runtime.context.components.responder is None else []
    check_fillable(settings, prompt, filled)
    data = dataset_hash([*queries, *validation])
    session = await open_run(runtime, {"data": data, "prompt_hash": hash_prompt(prompt)})
    stored: StoredCandidate = {"id": ROOT_ID, "parent_id": None, "depth": 0, "origin": "initial", "prompt": prompt}
    await session.archive.put_all("queries", {one.id: one.model_dump(mode="json") for one in [*queries, *validation]})
    await session.archive.put("run", "order", {"query_ids": [query.id for query in queries]})
    await session.archive.put_candidates([stored])
    level_queries = [queries[index].id for index in query_indices(0, settings=settings, num_queries=len(queries))]
    announce_run(session, runtime.context, prompt=prompt, num_queries=len(queries))
    announce_candidate(session, stored)
    level: SearchState = {"level": 0, "max_depth": settings.num_levels, "query_ids": level_queries}
    announce_level(session, level, num_rollouts=len(level_queries))
    warn_at_start(session, runtime.context, queries, validation)
    root = refer_to(stored, lineage=[ROOT_ID])
    update: SearchState = {}
    if given_rejected := state.get("rejected_rewrites"):
        rejected = _read_rejected(given_rejected)
        await session.archive.put("run", "warm_start", {"rejected": rejected})
        data = digest_json([data, rejected])
        update["rejected_rewrites"] = []
    return {
        **update,
        "format": STATE_FORMAT,
        "run_id": session.run_id,
        "fingerprints": {**runtime.context.search_fingerprints(), "data": data},
        "phase": "search",
        **level,
        "num_increases": 0,
        "num_stalled": 0,
        "num_repeats": 0,
        "is_repeat": False,
        "prefetch_ids": _ids_ahead(queries, settings),
        "selects_inline": True,
        "is_easy": False,
        "num_queries": len(queries),
        "validation_ids": [query.id for query in validation],
        "contender_ids": [],
        "beam": [],
        "initial_reward": None,
        "children": {BEGIN_WITH: [root]},  # type: ignore[typeddict-item]  # As the reducer takes it.
        "rollouts": None,  # type: ignore[typeddict-item]  # A new run on an old thread starts empty.
        # The texts are in the archive now; every checkpoint would repeat them.
        "queries": [],
        "validation_queries": [],
        "initial_prompt": "",
    }


def _read_prompt(given: object) -> str:
    if given is not None and (not isinstance(given, str) or clean_surrogates(given) != given):
        raise SettingsError(f"initial_prompt: expected a text in the graph's input, got {ascii(given)[:80]}.")
    return given or ""


def read_queries(given: Sequence[JsonValue | Query], *, label: str, is_optional: bool = False) -> tuple[Query, ...]:
    """Return queries handed over as texts or as objects.

    Raises:
        DatasetError: there are none, one is malformed, or two share an id.
    """
    queries = as_queries(cast(GivenQueries, given), label=label)
    if not queries and not is_optional:
        raise DatasetError("No training queries were given: pass them as 'queries' in the graph's input.")
    return queries


def _read_rejected(given: Sequence[JsonValue]) -> list[JsonValue]:
    try:
        return [RejectedRewrite.model_validate(one).model_dump(mode="json") for one in given]
    except ValidationError as error:
        raise DatasetError(
            f"Rejected rewrites: expected objects with 'prompt', 'reward' and 'parent_reward': {error}"
        ) from error


def _ids_ahead(queries: Sequence[Query], settings: Settings) -> list[str]:
    ahead = prefetch_indices(1, max_depth=settings.num_levels, settings=settings, num_queries=len(queries))
    return [queries[index].id for index in ahead]
