"""Several prompts of one app, optimised in turn: each by a run of its own, while the others stay as they are."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from drpo_graph.data.given import GivenQueries, as_queries
from drpo_graph.errors import RunExistsError, UsageError
from drpo_graph.parts.responders import OnePromptOfApp, Responder
from drpo_graph.records import Record, RunResult
from drpo_graph.runs.runner import RunOptions, optimize, resume
from drpo_graph.search.assembly import Parts
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.names import check_thread_id, new_thread_id

logger = logging.getLogger(__name__)


class PromptsResult(Record):
    """What was found for an app's prompts."""

    thread_id: str
    prompts: dict[str, str]
    """The delivered prompts, by name."""
    initial_prompts: dict[str, str]
    rounds: int
    """Rounds that were made: one that changes no prompt is the last."""
    runs: tuple[RunResult, ...]
    """Each prompt's runs, in the order in which they were made."""


async def optimize_prompts(
    prompts: Mapping[str, str],
    *,
    respond: Responder,
    queries: GivenQueries,
    settings: Settings,
    validation: GivenQueries = (),
    thread_id: str | None = None,
    rounds: int = 1,
    options: RunOptions | None = None,
    parts: Parts | None = None,
) -> PromptsResult:
    """Optimise an app's prompts in turn and return them all.

    It is coordinate descent: in each round each prompt, in the order given, is optimised by a run of its own, named
    ``<thread>-<round>-<name>``, on the app's responses with the other prompts as they have come out so far. Called
    again with the same thread id it goes on where it was: a finished run is not made again, and one that was stopped
    is resumed.

    Args:
        prompts: The app's prompts by name.
        respond: The app.
        queries: Training queries.
        settings: What each run does; its initial prompt is not used.
        validation: Held-out queries; given any, each prompt is chosen on them.
        thread_id: Begins the runs' names; a new name when absent.
        rounds: How often each prompt has its turn, at most.
        options: Where the runs are kept and who is told; a run folder gets one folder per run.
        parts: Replacements for models and components.

    Raises:
        UsageError: there is no prompt, a name cannot be part of a run's name, or another setting is wrong.
        DRPOError: one of the runs failed or was stopped; the same call goes on.
    """
    options, parts = options or RunOptions(), parts or Parts()
    thread_id = thread_id or new_thread_id()
    _check(prompts, thread_id, rounds, parts)
    # Each run reads them anew.
    training, held_out = as_queries(queries), as_queries(validation, label="validation")
    found, runs = dict(prompts), list[RunResult]()
    for number in range(1, rounds + 1):
        before = dict(found)
        for name in prompts:
            run_id = f"{thread_id}-{number}-{name}"
            own = settings.model_copy(update={"initial_prompt": found[name]})
            place = replace(options, log_dir=options.log_dir / run_id) if options.log_dir else options
            app = replace(parts, responder=OnePromptOfApp(respond, name, dict(found)))
            try:
                result = await optimize(
                    training, settings=own, validation=held_out, thread_id=run_id, options=place, parts=app
                )
            except RunExistsError:
                # All of its settings are compared: a run of another app, or of other prompts, is refused.
                result = await resume(run_id, options=place, parts=app, changes=own.model_dump(), queries=training)
            runs.append(result)
            found[name] = result.system_prompt
            logger.info("round %s: prompt %r has reward %s", number, name, result.reward)
        if found == before:
            break
    return PromptsResult(
        thread_id=thread_id, prompts=found, initial_prompts=dict(prompts), rounds=number, runs=tuple(runs)
    )


def _check(prompts: Mapping[str, str], thread_id: str, rounds: int, parts: Parts) -> None:
    if not prompts or rounds < 1:
        raise UsageError(f"Expected at least one prompt and one round, got {len(prompts)} and {rounds}.")
    if parts.responder is not None:
        raise UsageError("The app takes the base model's place: give no responder as a part besides.")
    blank = [name for name, prompt in prompts.items() if not prompt.strip()]
    if blank:
        raise UsageError(f"These prompts are blank: {', '.join(map(repr, blank))}. Give each a text to start from.")
    for name in prompts:
        check_thread_id(f"{thread_id}-{rounds}-{name}")
