"""What a reviewer sees of a level, and how a terminal is asked for a decision."""

import asyncio
import difflib
import getpass
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from drpo_graph.display.formatting import format_reward
from drpo_graph.errors import ReviewError, UsageError
from drpo_graph.runs.decisions import decide, pending_review
from drpo_graph.safety.terminal import inert, inert_block
from drpo_graph.safety.text_files import read_text
from drpo_graph.search.reviews import ReviewedCandidate, ReviewRequest
from drpo_graph.storage.protocols import Storage

_MAX_ID = 40
_MAX_PROMPT = 6000
_HELP = "a: approve the rest and go on   v ID: veto   e ID: edit   n TEXT: note   u: undo all   s: show again   q: quit"


def print_request(request: ReviewRequest, stdout: TextIO) -> None:
    """Print what waits for a decision: each candidate with its rewards, and what its prompt changes in its parent's."""
    console = Console(file=stdout, highlight=False, markup=False, emoji=False)
    end = "no level follows: what is left is validated, or delivered" if request.is_last else "before the next level"
    console.print(Text(f"level {request.level}, {end}", style="bold"), soft_wrap=True)
    for one in request.candidates:
        console.print(Rule(_heading(one), align="left", style="dim"))
        for line in _lines(one):
            console.print(line, soft_wrap=True)
    console.file.flush()


def default_author() -> str:
    """Return the name of the user.

    Raises:
        UsageError: the system knows none.
    """
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise UsageError("--author: the system knows no user's name. Give one.") from error


def is_terminal() -> bool:
    """Return whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def find_pending(thread_id: str, storage: Storage) -> ReviewRequest:
    """Return what a run waits for.

    Raises:
        ReviewError: it waits for no decision.
    """
    request = asyncio.run(pending_review(thread_id, checkpoint=storage))
    if request is None:
        raise ReviewError(f"Run {thread_id!r} waits for no decision. `drpo show {thread_id}` tells how far it is.")
    return request


def edit_text(text: str) -> str:
    """Return a text as the user changed it in ``$VISUAL`` or ``$EDITOR``.

    Raises:
        ReviewError: there is no editor, or it failed.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    # A folder of this user alone: a prompt may be confidential.
    with tempfile.TemporaryDirectory(prefix="drpo-review-") as folder:
        path = Path(folder) / "prompt.txt"
        path.write_text(f"{text}\n", encoding="utf-8")
        try:
            subprocess.run([*shlex.split(command), str(path)], check=True)
            return read_text(path).strip()
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise ReviewError(f"The editor {command!r} gave no text: {error}. Set EDITOR to another one.") from error


def decide_at_terminal(request: ReviewRequest, storage: Storage, *, author: str | None = None) -> bool:
    """Ask for the decision until it can be used, and store it; return whether there is one, and the run may go on."""

    def submit(fields: Mapping[str, object]) -> None:
        asyncio.run(decide(request.run_id, fields, checkpoint=storage))

    return ask_decision(request, author=author or default_author(), stdout=sys.stdout, submit=submit)


def ask_decision(
    request: ReviewRequest,
    *,
    author: str,
    stdout: TextIO,
    submit: Callable[[Mapping[str, object]], object],
    read: Callable[[str], str] = input,
    edit: Callable[[str], str] = edit_text,
) -> bool:
    """Ask a person at a terminal until there is a decision that can be used; return whether there is one.

    Without one it is left for later.

    Args:
        submit: Takes the fields of a decision; what it refuses with ``ReviewError`` is told and can be mended.
        read: Returns a line, given the prompt for it.
        edit: Returns a text as somebody changed it.
    """
    prompts = {one.id: one.prompt for one in request.candidates}
    vetoed, edits, note = set[str](), dict[str, str](), ""
    print_request(request, stdout)
    stdout.write(f"{_HELP}\n")
    while True:
        try:
            command, _, rest = read(_standing(vetoed, edits)).strip().partition(" ")
        except EOFError:
            return False
        rest = rest.strip()
        try:
            if command == "a":
                veto = [one for one in prompts if one in vetoed]
                submit({"author": author, "veto": veto, "edits": edits, "note": note})
                return True
            if command == "q":
                return False
            if command == "v" and rest in prompts:
                vetoed.add(rest)
            elif command == "e" and rest in prompts:
                edits[rest] = edit(edits.get(rest, prompts[rest]))
            elif command == "n":
                note = rest
            elif command == "u":
                vetoed, edits, note = set(), {}, ""
            elif command == "s":
                print_request(request, stdout)
            else:
                stdout.write(f"{_HELP}\ncandidates: {', '.join(prompts)}\n")
        except ReviewError as error:
            stdout.write(f"{error}\n")


def _standing(vetoed: set[str], edits: dict[str, str]) -> str:
    told = [*(f"vetoed {one}" for one in sorted(vetoed)), *(f"edited {one}" for one in sorted(edits))]
    return f"{', '.join(told)} > " if told else "> "


def _heading(candidate: ReviewedCandidate) -> Text:
    by = f" by {inert(candidate.author, max_chars=_MAX_ID)}" if candidate.author else ""
    parent = "" if candidate.parent_id is None else f" of {inert(candidate.parent_id, max_chars=_MAX_ID)}"
    origin = "edit" if candidate.origin == "human" else candidate.origin
    rewards = f"reward {format_reward(candidate.reward)}  path reward {format_reward(candidate.path_reward)}"
    return Text.assemble((inert(candidate.id, max_chars=_MAX_ID), "bold"), f"  {rewards}  {origin}{parent}{by} ")


def _lines(candidate: ReviewedCandidate) -> Iterator[Text]:
    prompt = inert_block(candidate.prompt, max_chars=_MAX_PROMPT).splitlines()
    if candidate.parent_prompt is None or candidate.parent_prompt == candidate.prompt:
        yield from (Text(f"  {line}") for line in prompt)
        return
    before = inert_block(candidate.parent_prompt, max_chars=_MAX_PROMPT).splitlines()
    for line in difflib.ndiff(before, prompt):
        if line.startswith("?"):
            continue
        style = {"+": "green", "-": "red"}.get(line[0], "")
        yield Text(line, style=style)
