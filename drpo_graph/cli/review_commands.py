"""``drpo review``: decide about what a run waits for, and go on."""

import asyncio
import json
import sys
from collections.abc import Sequence

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli import review_options as own
from drpo_graph.cli.inputs import read_prompt
from drpo_graph.cli.places import DEFAULT_PLACE, find_place_of, name_place
from drpo_graph.display.streams import quiet
from drpo_graph.errors import UsageError

_MAX_TOLD = 60


def review_command(
    thread_id: flags.RunArgument,
    approve: own.ApproveOption = False,
    veto: own.VetoOption = None,
    edit: own.EditOption = None,
    author: own.AuthorOption = None,
    note: own.NoteOption = "",
    no_resume: own.NoResumeOption = False,
    as_json: flags.JsonOption = False,
    reward: flags.RewardOption = None,
    serve: flags.ServeOption = False,
    serve_options: flags.ServeOptionsOption = None,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
    plain_files: flags.PlainFilesOption = False,
    logging_level: flags.LogLevelOption = "INFO",
    display: flags.DisplayOption = "rich",
) -> None:
    """Decide about the level that a run waits with, and let the run go on.

    Without a decision it shows what is asked; at a terminal it asks for the decision, level after level. A candidate
    that is neither vetoed nor edited is approved. An edit is tried beside the candidate's rewrites, and in their place
    where the candidate is vetoed too.
    """
    storage = find_place_of(thread_id, checkpoint)
    is_decided = approve or bool(veto) or bool(edit)
    if as_json and is_decided:
        raise UsageError("--json shows what is asked: it is not given with a decision.")
    edits = _read_edits(edit or [])
    # Loads LangGraph: wrong usage is told before that.
    from drpo_graph.cli import execution
    from drpo_graph.cli.reading import find_run
    from drpo_graph.cli.review_loop import decide_at_terminal, find_pending, is_terminal
    from drpo_graph.cli.review_page import default_author, print_request
    from drpo_graph.parts.rewards import check_named_again
    from drpo_graph.runs.decisions import decide

    request = find_pending(thread_id, storage)
    if as_json:
        typer.echo(json.dumps(request.model_dump(mode="json"), indent=2))
        return
    if not is_decided and not is_terminal():
        print_request(request, quiet(sys.stdout))
        place = name_place(storage)
        typer.echo(f"decide with: drpo review {thread_id}{place} --approve (or --veto ID, --edit ID=@FILE)")
        return
    # Before anything is stored: what is wrong with the command must not leave half of it done.
    options = execution.build_options(
        storage, None, disable_log=False, log_level=logging_level, plain_files=plain_files
    )
    serving = execution.build_serving(serve, serve_options, storage=storage, display=display)
    changes = {"reward": reward} if reward else {}
    if not no_resume:
        check_named_again(asyncio.run(find_run(storage, thread_id)).settings, changes)
    if is_decided:
        decision = {"author": author or default_author(), "veto": veto or (), "edits": edits, "note": note}
        asyncio.run(decide(thread_id, decision, checkpoint=storage))
    elif not decide_at_terminal(request, storage, author=author):
        return
    if no_resume:
        return
    run = execution.ResumedRun(changes=changes, training=None, accepts_changes=False, priced=(), retries_failed=False)
    execution.go_on(run, thread_id, options=options, display=display, serving=serving)


def _read_edits(texts: Sequence[str]) -> dict[str, str]:
    edits: dict[str, str] = {}
    for text in texts:
        candidate_id, separator, prompt = text.partition("=")
        if not separator or not candidate_id:
            raise UsageError(f"--edit {text[:_MAX_TOLD]}: expected ID=TEXT, or ID=@FILE.")
        if candidate_id in edits:
            raise UsageError(f"--edit {candidate_id}: it is given twice. A candidate has one edit.")
        edits[candidate_id] = read_prompt(prompt)
    return edits
