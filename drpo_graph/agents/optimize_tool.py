"""An optimisation as an agent's tool: it starts or continues a run, tells its progress, and is told how it ended."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from langchain_core.tools import StructuredTool
from langgraph.config import get_stream_writer
from langgraph.runtime import get_runtime

from drpo_graph.agents.prompt_slot import PromptSlot
from drpo_graph.agents.swapping import Swap, SwapRule, swap_if_better
from drpo_graph.agents.tool_arguments import build_arguments, explain_refusal
from drpo_graph.agents.tool_reviews import GraphReviews
from drpo_graph.data.datasets import load_bundled_queries
from drpo_graph.data.given import GivenQueries, as_queries
from drpo_graph.errors import BudgetSpentError, DRPOError, ReviewNeededError, RunExistsError, UsageError
from drpo_graph.events.schema import Event
from drpo_graph.inference.blocking import wait_for
from drpo_graph.prompts.library import fence
from drpo_graph.records import Query, RunResult
from drpo_graph.registry import RegisteredPrompt
from drpo_graph.registry.forms import describe_provenance
from drpo_graph.runs.runner import RunOptions, optimize, resume
from drpo_graph.safety.redaction import redact
from drpo_graph.search.assembly import Parts
from drpo_graph.search.run_names import find_saver
from drpo_graph.settings.limits import CAPS
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.names import new_thread_id

_DESCRIPTION = (
    "Search for a better system prompt. It makes many model calls and takes long; progress is shown meanwhile. It "
    "answers with the prompt that was found, its rewards and the run's thread id. A run that was stopped can be "
    "continued with that thread_id."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRules:
    """What an agent may do with the tool, beside the caps of the settings."""

    name: str = "optimize_prompt"
    """The tool's, and the beginning of its runs' names: only runs that are named so can be continued."""
    max_runs: int = 1
    """New runs that this tool may start while the process lives; continuing one is none."""
    max_own_queries: int = 0
    """Training queries that the model may write itself, in place of the given ones."""
    swap_when: SwapRule = "auto"
    """What must hold for a found prompt to be put into the slot."""


def make_optimize_tool(
    settings: Settings,
    *,
    queries: GivenQueries | None = None,
    validation: GivenQueries = (),
    slot: PromptSlot | None = None,
    rules: ToolRules | None = None,
    options: RunOptions | None = None,
    parts: Parts | None = None,
) -> StructuredTool:
    """Return a LangChain tool that optimises a prompt with :func:`~drpo_graph.optimize`.

    The agent's model may choose ``depth``, ``num_queries`` and the caps that are set, each up to the settings' value,
    and name a run to continue. It chooses no model, place, file or reward. Events go into LangGraph's custom stream as
    they come. What stops a run is told to the agent, with how to go on; only a cancelled call ends the run unsaid. A
    level that waits for a review interrupts an agent that has a checkpointer: ``Command(resume=decision)`` answers.

    Args:
        settings: What a run does, at most; at least one cap must be set.
        queries: Training queries; the bundled ones when absent.
        validation: Held-out queries, for the final choice.
        slot: Holds the prompt in use: a run begins with it, and what it finds is put there if it is better.
        rules: What the agent may do besides.
        options: Where runs are kept and who else is told.
        parts: Replacements for models and components.

    Raises:
        SettingsError: no cap is set.
        DatasetError: there are no training queries.
    """
    rules = rules or ToolRules()
    training = load_bundled_queries() if queries is None else as_queries(queries)
    number = min(len(training), settings.num_queries or len(training))
    arguments = build_arguments(settings, num_queries=max(number, 1), max_own_queries=rules.max_own_queries)
    held_out = as_queries(validation, label="validation")
    work = _ToolWork(settings, training, held_out, slot, rules, options=options or RunOptions(), parts=parts or Parts())
    return StructuredTool.from_function(
        func=lambda **given: wait_for(work.call(**given)),
        coroutine=work.call,
        name=rules.name,
        description=_DESCRIPTION,
        args_schema=arguments,
        handle_validation_error=explain_refusal,
    )


@dataclass(slots=True)
class _ToolWork:
    """What the tool's calls share."""

    settings: Settings
    queries: tuple[Query, ...]
    validation: tuple[Query, ...]
    slot: PromptSlot | None
    rules: ToolRules
    options: RunOptions = field(kw_only=True)
    parts: Parts = field(kw_only=True)
    started: set[str] = field(default_factory=set)
    """Runs that were started in this process."""

    async def call(
        self, *, thread_id: str | None = None, queries: Sequence[str] | None = None, **choices: float | None
    ) -> str:
        """Carry out a run, or continue the one that is named, and return what the agent is told."""
        run_id = thread_id or f"{self.rules.name}-{_find_task_id() or new_thread_id()}"
        chosen = {name: value for name, value in choices.items() if value is not None}
        options = replace(self.options, sinks=(*self.options.sinks, _open_stream()))
        if thread_id is None:
            begin = partial(self._start, run_id, chosen, queries, options=options)
        else:
            begin = partial(self._resume, run_id, chosen, options)
        try:
            if not run_id.startswith(f"{self.rules.name}-"):
                raise UsageError(f"Run {run_id!r} is none of this tool's: their names begin with {self.rules.name}-.")
            result = await self._carry_out(begin, partial(self._resume, run_id, chosen, options), run_id)
        except DRPOError as error:
            return self._explain(error, chosen, run_id)
        return _describe(result, self._offer(result))

    async def _carry_out(
        self, begin: Callable[[], Awaitable[RunResult]], go_on: Callable[[], Awaitable[RunResult]], run_id: str
    ) -> RunResult:
        """Carry out a run, whose reviews are asked in the agent's graph where that can be gone on with."""
        task_id = _find_task_id()
        reviews = GraphReviews(self.options.checkpoint, run_id, task_id) if task_id and find_saver() else None
        while True:
            try:
                return await begin()
            except ReviewNeededError:
                if reviews is None:
                    raise
            await reviews.ask()
            begin = go_on

    async def _start(
        self, thread_id: str, chosen: Mapping[str, float], queries: Sequence[str] | None, *, options: RunOptions
    ) -> RunResult:
        was_started = thread_id in self.started
        if not was_started and len(self.started) >= self.rules.max_runs:
            raise UsageError(f"The developer allows {self.rules.max_runs} new run(s), and they were started.")
        self.started.add(thread_id)
        training = self.queries if queries is None else queries
        values: dict[str, object] = {**chosen}
        number = chosen.get("num_queries", self.settings.num_queries)
        if number is not None:
            values["num_queries"] = min(number, len(training))
        if self.slot is not None:
            values["initial_prompt"] = self.slot.current.text
            values["placeholders"] = self.slot.placeholders or self.settings.placeholders
        try:
            return await optimize(
                training,
                settings=self.settings.model_copy(update=values),
                validation=self.validation,
                thread_id=thread_id,
                options=options,
                parts=self.parts,
            )
        except UsageError as error:
            if not was_started:
                self.started.discard(thread_id)  # Nothing was started.
            if not isinstance(error, RunExistsError):
                raise
        # The agent was stopped, or answered, in the middle of this very call, and goes on with it.
        return await self._resume(thread_id, chosen, options)

    async def _resume(self, thread_id: str, chosen: Mapping[str, float], options: RunOptions) -> RunResult:
        changes: dict[str, object] = {cap: chosen.get(cap, getattr(self.settings, cap)) for cap in CAPS}
        if self.settings.reward:
            # A checkpoint's word loads no reward function; the developer's does.
            changes["reward"] = self.settings.reward
        return await resume(thread_id, options=options, parts=self.parts, changes=changes)

    def _offer(self, result: RunResult) -> Swap | None:
        if self.slot is None:
            return None
        try:
            return swap_if_better(self.slot, result, swap_when=self.rules.swap_when)
        except DRPOError as error:
            # What was found is told all the same.
            return Swap(None, redact(str(error)))

    def _explain(self, error: DRPOError, chosen: Mapping[str, float], thread_id: str) -> str:
        told = redact(str(error))
        if not error.is_resumable:
            return f"The optimisation was not carried out. {told}"
        again = f"call {self.rules.name} again with thread_id={thread_id!r}"
        if isinstance(error, ReviewNeededError):
            return f"{told} A person has to decide, with `drpo review {thread_id}`; after that, {again}."
        if not isinstance(error, BudgetSpentError):
            return f"The optimisation was stopped. {told} To continue it, {again}: no finished call is made twice."
        larger = [
            f"{cap} (at most {getattr(self.settings, cap):g})"
            for cap in CAPS
            if cap in chosen and chosen[cap] < getattr(self.settings, cap)
        ]
        if larger:
            return f"The budget is spent. {told} To continue, {again} and a larger {' or '.join(larger)}."
        return (
            f"The budget is spent. {told} It is as large as the developer allows: only they can continue the run, with "
            f"`drpo resume {thread_id} {error.resume_flags}`."
        )


def _find_task_id() -> str | None:
    """Return what names this call of the tool in a checkpointed agent, and again when the agent is resumed in it."""
    try:
        runtime = get_runtime()
    except RuntimeError:  # Called outside of a graph.
        return None
    info = runtime.execution_info if runtime is not None else None
    return info.task_id if info is not None and info.thread_id is not None else None


def _open_stream() -> Callable[[Event], None]:
    """Return what writes events into the custom stream of the graph that the tool is called in, if it is in one."""
    try:
        write = get_stream_writer()
    except (RuntimeError, KeyError):  # Called outside of a graph: nobody listens.
        return lambda event: None
    return lambda event: write(event.model_dump(mode="json"))


def _describe(result: RunResult, swap: Swap | None) -> str:
    known = RegisteredPrompt.from_result(result, model=result.thread_id)
    # The first line names the model, which is the slot's or the agent's business.
    lines = list(describe_provenance(known))[1:]
    usage = sum(one.calls for one in result.usage_by_role.values())
    lines += [f"model calls: {usage}", f"levels searched: {result.depth}"]
    if swap is not None:
        use = f"it is in use now, as version {swap.version.version}" if swap.version else "it was not put in use"
        lines.append(f"{use}: {swap.reason}")
    return "\n".join(("The optimisation is finished.", *lines, "The prompt:", fence("prompt", result.system_prompt)))
