"""Ask a person at a terminal for the decision that a run waits for."""

import asyncio
import sys
from collections.abc import Mapping

from drpo_graph.cli.review_page import ask_decision, default_author
from drpo_graph.errors import ReviewError
from drpo_graph.runs.decisions import decide, pending_review
from drpo_graph.search.reviews import ReviewRequest
from drpo_graph.storage.protocols import Storage


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


def decide_at_terminal(request: ReviewRequest, storage: Storage, *, author: str | None = None) -> bool:
    """Ask for the decision until it can be used, and store it; return whether there is one, and the run may go on."""

    def submit(fields: Mapping[str, object]) -> None:
        asyncio.run(decide(request.run_id, fields, checkpoint=storage))

    return ask_decision(request, author=author or default_author(), stdout=sys.stdout, submit=submit)
