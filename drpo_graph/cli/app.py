"""The command line's frame: commands, one-line errors, exit codes."""

import asyncio
import sys
import traceback
from typing import Annotated

import typer

from drpo_graph import __version__
from drpo_graph.cli.commands.fork import fork_command
from drpo_graph.cli.commands.generate import generate_command
from drpo_graph.cli.commands.icl import icl_command
from drpo_graph.cli.commands.models import app as models_app
from drpo_graph.cli.commands.oirl.app import app as oirl_app
from drpo_graph.cli.commands.optimize import optimize_command, resume_command
from drpo_graph.cli.commands.prompts import import_command, prompts_command
from drpo_graph.cli.commands.retention import export_command, prune_command
from drpo_graph.cli.commands.review import review_command
from drpo_graph.cli.commands.runs import events_command, runs_command, show_command
from drpo_graph.cli.commands.serve import serve_command
from drpo_graph.cli.options import FLAG_BY_PUBLISHED_NAME
from drpo_graph.errors import DRPOError
from drpo_graph.safety.redaction import redact
from drpo_graph.safety.terminal import inert_block

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_MAX_MESSAGE = 100_000

app = typer.Typer(
    name="drpo",
    help="Tuning-free alignment: optimise system prompts with DRPO. Runs are durable, resumable and streamed.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in (
    ("optimize", optimize_command),
    ("icl", icl_command),
    ("resume", resume_command),
    ("generate", generate_command),
    ("fork", fork_command),
    ("review", review_command),
    ("runs", runs_command),
    ("show", show_command),
    ("events", events_command),
    ("prune", prune_command),
    ("export", export_command),
    ("import", import_command),
    ("prompts", prompts_command),
    ("serve", serve_command),
):
    # Typer keeps the line breaks of a docstring: the terminal's width should decide.
    app.command(_name, help="\n\n".join(" ".join(one.split()) for one in (_command.__doc__ or "").split("\n\n")))(
        _command
    )

app.add_typer(models_app, name="models", help="Find out what models can do.")
app.add_typer(oirl_app, name="oirl", help="Learn from logs which prompt suits a query (Prompt-OIRL).")


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


def _rename(argument: str) -> str:
    """Return an argument with a published flag's name replaced by ours."""
    name, separator, value = argument.partition("=")
    return FLAG_BY_PUBLISHED_NAME.get(name, name) + separator + value


def _run(arguments: list[str], *, is_debug: bool) -> int:
    try:
        code = app([_rename(one) for one in arguments] or ["--help"], standalone_mode=False, prog_name="drpo")
    except (typer.Abort, KeyboardInterrupt, asyncio.CancelledError):
        typer.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except DRPOError as error:
        return _report(error, error.exit_code, is_debug=is_debug)
    except BrokenPipeError:
        # The reader has left: what it wanted, it has.
        return 0
    except Exception as error:  # noqa: BLE001  # The frame: whatever it is, the user gets one line.
        return _report(error, EXIT_USAGE if _is_usage_error(error) else EXIT_FAILED, is_debug=is_debug)
    # Without arguments the help is what one needs, but not what one asked for.
    return EXIT_USAGE if not arguments else code if isinstance(code, int) else 0


def _is_usage_error(error: Exception) -> bool:
    # Typer may carry its own copy of click, whose errors have no name to import: they are known by their shape.
    return hasattr(error, "format_message")


def _report(error: Exception, code: int, *, is_debug: bool) -> int:
    if is_debug:
        _echo("".join(traceback.format_exception(error)))
    elif isinstance(error, DRPOError):
        if not error.was_shown:
            _echo(f"error: {error}")
    elif _is_usage_error(error):
        _echo(f"error: {_describe_usage(error)}")
    else:
        _echo(f"error: {type(error).__name__}: {error} (a bug: run again with --debug for its place)")
    return code


def _echo(text: str) -> None:
    """Write to stderr, free of keys and of what a terminal would obey: a server's words may stand in it."""
    typer.echo(inert_block(redact(text), max_chars=_MAX_MESSAGE), err=True)


def _describe_usage(error: Exception) -> str:
    message = str(getattr(error, "format_message", lambda: error)()).rstrip(".")
    command = getattr(getattr(error, "ctx", None), "command_path", "drpo")
    return f"{message}. `{command} --help` lists what there is."
