"""End a reply where it was to stop, for servers that do not take the field."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from drpo_graph.models.request import Choice, Piece, Reply


def cut_at_stops(reply: Reply, stops: Sequence[str]) -> Reply:
    """Return the reply, each sample ended before the first of the stops in it."""
    return replace(reply, choices=tuple(_cut(one, stops) for one in reply.choices))


def _cut(choice: Choice, stops: Sequence[str]) -> Choice:
    text = choice.text[: _find_stop(choice.text, stops)]
    return choice if text == choice.text else choice.model_copy(update={"text": text, "finish_reason": "stop"})


async def end_at_stops(pieces: AsyncIterator[Piece], stops: Sequence[str]) -> AsyncIterator[Piece]:
    """Yield the pieces up to the first of the stops; what may be the beginning of one is held back until it is not.

    What comes after it is read to the end, for the usage that is told there.
    """
    held, is_ended = "", False
    async for piece in pieces:
        held += "" if is_ended else piece.text
        end = _find_stop(held, stops)
        is_last = piece.finish_reason is not None
        ready = held[:end] if end is not None or is_last else held[: len(held) - _num_begun(held, stops)]
        held = held[len(ready) :]
        yield piece._replace(text="" if is_ended else ready)
        is_ended = is_ended or end is not None
    if held and not is_ended:
        yield Piece(held)


def _find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first stop begins."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def _num_begun(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end may begin a stop."""
    return max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])),
        default=0,
    )
