"""The options of reviews: of ``drpo optimize``, which pauses for them, and of ``drpo review``."""

from typing import Annotated

import typer

_FLAG = " "
_DECISION = "Decision"

PauseOption = Annotated[
    bool | None,
    typer.Option(
        "--approve", metavar=_FLAG, help="Pause between levels until a person approves, edits or vetoes the beam."
    ),
]
ApproveOption = Annotated[
    bool,
    typer.Option("--approve", metavar=_FLAG, help="Approve what is not vetoed or edited.", rich_help_panel=_DECISION),
]
VetoOption = Annotated[
    list[str] | None,
    typer.Option(
        "--veto", metavar="ID", help="Candidate that leaves the beam; may be repeated.", rich_help_panel=_DECISION
    ),
]
EditOption = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        metavar="ID=TEXT",
        help="Prompt that is tried as the candidate's child; ID=@FILE reads it from a file; may be repeated.",
        rich_help_panel=_DECISION,
    ),
]
AuthorOption = Annotated[
    str | None,
    typer.Option("--author", metavar="NAME", help="Who decides; the user by default.", rich_help_panel=_DECISION),
]
NoteOption = Annotated[
    str, typer.Option("--note", metavar="TEXT", help="Why; kept with the decision.", rich_help_panel=_DECISION)
]
NoResumeOption = Annotated[
    bool,
    typer.Option(
        "--no-resume", metavar=_FLAG, help="Only store the decision: `drpo resume` goes on by it, here or elsewhere."
    ),
]
