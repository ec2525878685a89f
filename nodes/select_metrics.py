"""Select the metrics that matter for a query (the dynamic reward of arXiv 2411.08733)."""

from langgraph.runtime import Runtime

from drpo_graph.errors import ReplyError
from drpo_graph.events.schema import MetricsSelected
from drpo_graph.parts.own_answers import take_selection
from drpo_graph.parts.own_code import call_own
from drpo_graph.records import MetricSelection
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.search.state import MetricsTask, RolloutState


async def select_metrics(state: MetricsTask | RolloutState, runtime: Runtime[RunContext]) -> dict[str, object]:
    """Leave the query's metrics in the archive; of a query that has some already, nothing is asked.

    A selector whose reply cannot be used does not cost the query: the first metrics of the list stand in, and the
    run says so.
    """
    session = await session_of(runtime, state["run_id"])
    query_id = state["query_id"]
    if await session.archive.metrics_for(query_id) is None:
        # Siblings on one query ask at the same moment; they share one selection.
        await session.shared_work.share(f"metrics/{query_id}", lambda: _select(query_id, session, runtime.context))
    return {}


async def _select(query_id: str, session: RunSession, context: RunContext) -> None:
    query = await session.archive.query(query_id)
    try:
        said: object = await call_own(
            context.components.selector.select_metrics,
            query,
            models=session.models,
            called="the metric selector",
            timeout_s=context.settings.timeout_s,
            is_bounded=False,
        )
        selection = take_selection(said)
    except ReplyError as error:
        selection = MetricSelection(metrics=context.prompts.metrics[: context.settings.max_metrics])
        session.warn(f"{error}; the first metrics of the list stand in")
    await session.archive.put("metrics", query_id, selection.model_dump(mode="json"))
    session.emitter.emit(
        MetricsSelected(
            run_id=session.run_id, query_id=query_id, metrics=selection.metrics, reasoning=selection.reasoning
        )
    )
