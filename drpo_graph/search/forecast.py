"""What a run will still need, told while it runs, and whether its budget will last."""

from collections.abc import Mapping, Sequence

from drpo_graph.events.schema import Remaining
from drpo_graph.records import Query
from drpo_graph.retrieval import EmbeddingRetriever
from drpo_graph.search.estimate import Dataset, Estimate, estimate_remaining, estimate_run, find_shortage
from drpo_graph.search.session import RunContext, RunSession
from drpo_graph.search.state import SearchState
from drpo_graph.search.workload import Workload, plan_levels, plan_validation
from drpo_graph.settings.limits import CAPS, Cap

_CLEAR_LEVEL = 1
"""From this level on a run's own calls say what the rest will be."""


def warn_at_start(
    session: RunSession, context: RunContext, queries: Sequence[Query], held_out: Sequence[Query]
) -> None:
    """Tell a run that starts if its budget is smaller than what such a run usually needs."""
    if not any(getattr(context.settings, cap) is not None for cap in CAPS):
        return
    retriever = context.components.example_retriever
    examples = retriever.examples if isinstance(retriever, EmbeddingRetriever) else ()
    data = Dataset(queries, held_out, examples=examples)
    expected = estimate_run(context.settings, context.prompts, data, is_worst=False)
    # How fast the servers are is not known yet.
    needed: dict[Cap, float | None] = {cap: expected.amount_of(cap) for cap in CAPS if cap != "max_time"}
    _warn(session, needed, "by lengths that are usual")


async def warn_at_resume(session: RunSession, context: RunContext, state: SearchState) -> None:
    """Tell a run that goes on, perhaps with other caps, if its budget is smaller than what it usually needs in all."""
    if "forked_level" in state:
        # How much of the rest it inherits, and has for nothing, only its own levels will show.
        return
    archive = session.archive
    queries = [await archive.query(one) for one in await archive.query_order()]
    warn_at_start(session, context, queries, [await archive.query(one) for one in state["validation_ids"]])


def look_ahead(session: RunSession, context: RunContext, state: SearchState, *, num_parents: int) -> Remaining:
    """Return what is left to do after the state's level; tell once when it is clear that the budget will not last."""
    estimate = _estimate_rest(session, context, state, num_parents=num_parents)
    budget = session.ledger.budget
    if state["level"] >= state.get("forked_level", 0) + _CLEAR_LEVEL and not budget.has_warned:
        needed: dict[Cap, float | None] = {}
        for cap in CAPS:
            rest = estimate.amount_of(cap)
            needed[cap] = None if rest is None else budget.spent_of(cap) + rest
        if budget.spent.calls:
            # By its own pace, the waits for servers included.
            needed["max_time"] = budget.elapsed_s * (1 + estimate.calls / budget.spent.calls)
        budget.has_warned = _warn(session, needed, "by what it has used so far")
    num_validation = len(state["validation_ids"])
    return Remaining(
        calls=estimate.calls,
        tokens=estimate.tokens,
        cost_usd=estimate.cost_usd,
        num_validation_rollouts=plan_validation(context.settings, num_validation=num_validation).rollouts,
    )


def _estimate_rest(session: RunSession, context: RunContext, state: SearchState, *, num_parents: int) -> Estimate:
    settings, level, num_queries = context.settings, state["level"], state["num_queries"]
    ahead = plan_levels(
        settings,
        num_queries=num_queries,
        first=level + 1,
        last=state["max_depth"],
        num_parents=num_parents,
        num_repeats=state["num_repeats"],
    )
    # What was run again shows in what the planned calls came to.
    # A fork's own calls begin after its first level.
    first = state["forked_level"] + 1 if "forked_level" in state else 0
    done = plan_levels(settings, num_queries=num_queries, first=first, last=level)
    if ahead and settings.stop_reward is None:
        # The next level's metrics are selected already.
        done.append(Workload(selections=ahead[0].selections))
        ahead[0] = ahead[0]._replace(selections=0)
    if state["validation_ids"]:
        ahead.append(plan_validation(settings, num_validation=len(state["validation_ids"])))
    return estimate_remaining(ahead, settings, done=done, used=session.ledger.usage_by_role, prompts=context.prompts)


def _warn(session: RunSession, needed: Mapping[Cap, float | None], basis: str) -> bool:
    shortage = find_shortage(session.ledger.budget.limits, needed)
    if shortage is not None:
        session.warn(f"{shortage} ({basis})")
    return shortage is not None
