"""The command line's frame: commands, one-line errors, exit codes."""

import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from drpo_graph import __version__
from drpo_graph.cli.lazy_commands import Listed, group_of
from drpo_graph.cli.published_names import Translated, translate
from drpo_graph.errors import DRPOError, UsageError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_MAX_MESSAGE = 100_000
_ADVISED = re.compile(r"`(drpo (?:runs|(?:resume|show|events|review) [^`]+))`")
"""A whole command about stored runs, as errors give it."""

_HOME = "drpo_graph.cli.commands"
COMMANDS = {
    "optimize": Listed(f"{_HOME}.optimize:optimize_command", "Optimise a system prompt."),
    "icl": Listed(
        f"{_HOME}.icl:icl_command",
        "Optimise ICL examples: rewrite their responses from critiques, and keep the best-scored ones.",
    ),
    "resume": Listed(
        f"{_HOME}.optimize:resume_command",
        "Continue a run from where it was: after Ctrl-C, a crash, a lost connection.",
    ),
    "generate": Listed(
        f"{_HOME}.generate:generate_command",
        "Answer QUERY with a model and its optimised prompt, and print the response as it comes.",
    ),
    "fork": Listed(
        f"{_HOME}.fork:fork_command", "Branch a run with other settings from the state that it had after a level."
    ),
    "review": Listed(
        f"{_HOME}.review:review_command", "Decide about the level that a run waits with, and let the run go on."
    ),
    "runs": Listed(f"{_HOME}.runs:runs_command", "List the runs of a checkpoint, the newest first."),
    "show": Listed(
        f"{_HOME}.runs:show_command",
        "Show one run: its result, or how far it is; its levels, the path to its best prompt, its cost.",
    ),
    "events": Listed(
        f"{_HOME}.runs:events_command",
        "Print a run's stored events, or follow them from another terminal; --display rich shows the live panel.",
    ),
    "prune": Listed(
        f"{_HOME}.retention:prune_command",
        "Give space back: old checkpoints of finished runs, all but their results, or whole runs.",
    ),
    "export": Listed(
        f"{_HOME}.retention:export_command",
        "Write a run's files from the checkpoint alone: prompt, result, tree; of an unfinished run, the best so far.",
    ),
    "import": Listed(
        f"{_HOME}.prompts:import_command",
        "Keep a published result's, a run's or a mapping's prompts by model name, or make a dataset of traces.",
    ),
    "prompts": Listed(
        f"{_HOME}.prompts:prompts_command",
        "List the prompts that are kept, or give that of one model, in the form that is wanted.",
    ),
    "serve": Listed(f"{_HOME}.serve:serve_command", "Serve a model with vLLM until Ctrl-C, and say how a run uses it."),
    "models": Listed(f"{_HOME}.models:app", "Find out what models can do."),
    "oirl": Listed(f"{_HOME}.oirl.app:app", "Learn from logs which prompt suits a query (Prompt-OIRL)."),
}

app = typer.Typer(
    name="drpo",
    help="Tuning-free alignment: optimise system prompts with DRPO. Runs are durable, resumable and streamed.",
    cls=group_of(COMMANDS),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"drpo_graph {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar=" ", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", metavar=" ", help="Show the traceback of an error.")] = False,
) -> None:
    """Read the options that come before the command; ``--debug`` is looked up where an error is shown."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, and three after which a run can go on.

    3: its budget is spent, 4: it waits for a decision, 130: it was interrupted.
    """
    given = sys.argv[1:] if arguments is None else arguments
    is_debug = "--debug" in given
    # --debug belongs to every command: it is taken out wherever it stands.
    sys.exit(_run([one for one in given if one != "--debug"], is_debug=is_debug))


def _run(arguments: list[str], *, is_debug: bool) -> int:
    told = Translated([], {})
    try:
        _check_text(arguments)
        told = translate(arguments)
        code = app(told.arguments or ["--help"], standalone_mode=False, prog_name="drpo")
    except _list_interruptions():
        typer.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except DRPOError as error:
        return _report(error, error.exit_code, is_debug=is_debug, told=told)
    except BrokenPipeError:
        # The reader has left: what it wanted, it has.
        return 0
    except Exception as error:  # noqa: BLE001  # The frame: whatever it is, the user gets one line.
        return _report(error, EXIT_USAGE if _is_usage_error(error) else EXIT_FAILED, is_debug=is_debug, told=told)
    # Without arguments the help is what one needs, but not what one asked for.
    return EXIT_USAGE if not arguments else code if isinstance(code, int) else 0


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse what the shell hands over as bytes that are no text: nothing of it could be stored, sent or shown."""
    # A question is answered as it is, and what cannot be sent is left out of it.
    checked = arguments if arguments[:1] != ["generate"] else ()
    for place, one in enumerate(checked, 1):
        if not one.isprintable() and any("\ud800" <= char <= "\udfff" for char in one):
            raise UsageError(f"Argument {place} is no UTF-8 text: {ascii(one)[:100]}. Give it as UTF-8.")


def _list_interruptions() -> tuple[type[BaseException], ...]:
    """Return what ends a command that is interrupted; asked for only where something was raised."""
    from asyncio import CancelledError  # A third of what `drpo --help` would load.

    return typer.Abort, KeyboardInterrupt, CancelledError


def _is_usage_error(error: Exception) -> bool:
    # Typer may carry its own copy of click, whose errors have no name to import: they are known by their shape.
    return hasattr(error, "format_message")


def _report(error: Exception, code: int, *, is_debug: bool, told: Translated) -> int:
    if is_debug:
        _echo("".join(traceback.format_exception(error)))
    elif isinstance(error, DRPOError):
        if not error.was_shown:
            # What was meant is what was typed; only wrong usage is about that.
            said = told.as_typed(str(error)) if isinstance(error, UsageError) else str(error)
            _echo(f"error: {_complete(said, told.arguments)}")
    elif _is_usage_error(error):
        _echo(f"error: {told.as_typed(_describe_usage(error))}")
    else:
        _echo(f"error: {type(error).__name__}: {error} (a bug: run again with --debug for its place)")
    return code


def _complete(message: str, arguments: Sequence[str]) -> str:
    """Return an error's words with commands that can be pasted: with drpo's path, and the place of the runs."""
    from drpo_graph.cli.places import find_place_flag
    from drpo_graph.safety.installing import tell_command

    return _ADVISED.sub(lambda found: f"`{tell_command(found[1])}{find_place_flag(arguments)}`", message)


def _echo(text: str) -> None:
    """Write to stderr, free of keys and of what a terminal would obey: a server's words may stand in it."""
    from drpo_graph.safety.redaction import redact  # Only errors need it, and they may take their time.
    from drpo_graph.safety.terminal import inert_block

    typer.echo(inert_block(redact(text), max_chars=_MAX_MESSAGE), err=True)


def _describe_usage(error: Exception) -> str:
    message = str(getattr(error, "format_message", lambda: error)()).rstrip(".")
    command = getattr(getattr(error, "ctx", None), "command_path", "drpo")
    return f"{message}. `{command} --help` lists what there is."
