"""``drpo review``: decide about what a run waits for, and go on."""

import asyncio
import json
import sys
from typing import Annotated

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.inputs import read_prompt
from drpo_graph.cli.option_groups import FLAG, Only, OptionGroup, Without, option, takes_options
from drpo_graph.cli.places import find_place_of, name_place
from drpo_graph.display.streams import quiet
from drpo_graph.errors import UsageError
from drpo_graph.safety.installing import tell_command

_MAX_TOLD = 60


class _Decision(OptionGroup, panel="Decision"):
    """What is decided, by whom."""

    approve: bool = option(False, FLAG, help="Approve what is not vetoed or edited.")
    veto: list[str] | None = option(None, "ID", help="Candidate that leaves the beam; may be repeated.")
    edit: list[str] | None = option(
        None,
        "ID=TEXT",
        help="Prompt that is tried as the candidate's child; ID=@FILE reads it from a file; may be repeated.",
    )
    author: str | None = option(None, "NAME", help="Who decides; the user by default.")
    note: str = option("", "TEXT", help="Why; kept with the decision.")

    @property
    def is_made(self) -> bool:
        """Whether the command line decides."""
        return self.approve or bool(self.veto) or bool(self.edit)

    def read_edits(self) -> dict[str, str]:
        """Return the edited prompts by candidate."""
        edits: dict[str, str] = {}
        for text in self.edit or ():
            candidate_id, separator, prompt = text.partition("=")
            if not separator or not candidate_id:
                raise UsageError(f"--edit {text[:_MAX_TOLD]}: expected ID=TEXT, or ID=@FILE.")
            if candidate_id in edits:
                raise UsageError(f"--edit {candidate_id}: it is given twice. A candidate has one edit.")
            edits[candidate_id] = read_prompt(prompt)
        return edits


@takes_options
def review_command(
    *,
    thread_id: flags.RunArgument,
    decision: _Decision,
    no_resume: bool = option(
        False, FLAG, help="Only store the decision: `drpo resume` goes on by it, here or elsewhere."
    ),
    as_json: flags.JsonOption = False,
    search: Annotated[flags.Search, Only("reward")],
    serving: flags.Serving,
    output: Annotated[flags.Output, Without("log_dir", "disable_log")],
) -> None:
    """Decide about the level that a run waits with, and let the run go on.

    Without a decision it shows what is asked; at a terminal it asks for the decision, level after level. A candidate
    that is neither vetoed nor edited is approved. An edit is tried beside the candidate's rewrites, and in their place
    where the candidate is vetoed too.
    """
    storage = find_place_of(thread_id, output.checkpoint)
    if as_json and decision.is_made:
        raise UsageError("--json shows what is asked: it is not given with a decision.")
    edits = decision.read_edits()
    # Loads LangGraph: wrong usage is told before that.
    from drpo_graph.cli import execution
    from drpo_graph.cli.pages import review as review_page
    from drpo_graph.parts.rewards import check_named_again
    from drpo_graph.runs.decisions import decide
    from drpo_graph.runs.reading import find_run

    request = review_page.find_pending(thread_id, storage)
    if as_json:
        typer.echo(json.dumps(request.model_dump(mode="json"), indent=2))
        return
    if not decision.is_made and not review_page.is_terminal():
        review_page.print_request(request, quiet(sys.stdout))
        typer.echo("--veto ID takes a candidate out, --edit ID=@FILE tries another prompt")
        typer.echo(f"decide with: {tell_command(f'drpo review {thread_id}{name_place(storage)} --approve')}")
        return
    # Before anything is stored: what is wrong with the command must not leave half of it done.
    frame = execution.build_frame(storage, output, serving=serving)
    changes = search.given()
    if not no_resume:
        check_named_again(asyncio.run(find_run(storage, thread_id)).settings, changes)
    if decision.is_made:
        author = decision.author or review_page.default_author()
        fields = {"author": author, "veto": decision.veto or (), "edits": edits, "note": decision.note}
        asyncio.run(decide(thread_id, fields, checkpoint=storage))
    elif not review_page.decide_at_terminal(request, storage, author=decision.author):
        return
    if no_resume:
        return
    execution.go_on(execution.ResumedRun(changes=changes), thread_id, frame=frame)
