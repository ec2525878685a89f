"""How long a server's answer may be: its bytes are counted as they come, after decompression.

The client libraries read an answer whole, however long it is, and a few megabytes on the wire may be gigabytes of text.
Imported on first use, because ``openai`` takes a second or two.
"""

import json
import sys
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import openai

from drpo_graph.models.failures import MalformedReplyError

ENCODINGS = "gzip, deflate"
"""What answers may be compressed with: what can be read a piece at a time, however much comes of it."""

_FLOOR_BYTES = 4_000_000
"""What any answer may have: a router's list of models is the longest one that asks for no tokens."""
_BYTES_PER_TOKEN = 2_000
"""Of one sample: its text with every character escaped, or the event that a stream makes of each token."""
_BYTES_PER_SCORED_TOKEN = 8_000
"""The same with the probabilities of twenty others."""
_BYTES_PER_VECTOR = 256_000
_ERROR_BYTES = 1_000_000
"""What is read of an error: its status and first words say what it means, however long it is."""
_PIECE_BYTES = 2**16

_LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")

if TYPE_CHECKING:
    import httpx
else:
    # The library that ``openai`` speaks through: ``httpx`` before its version 3, then ``httpx2``.
    _own = next(one for one in openai.DefaultAsyncHttpxClient.__mro__ if one.__module__.startswith("httpx"))
    httpx = sys.modules[_own.__module__.partition(".")[0]]


class OverlongReplyError(MalformedReplyError):
    """The server's answer does not end where any reply would have."""


def find_bound(body: object) -> int:
    """Return how many bytes the answer to a request may have: generous for the tokens and samples, or texts, it has."""
    if not isinstance(body, Mapping):
        return _FLOOR_BYTES
    counts = [count for name in _LIMIT_FIELDS if isinstance(count := body.get(name), int)]
    samples, texts = body.get("n"), body.get("input")
    num_tokens = max(counts, default=0) * max(samples if isinstance(samples, int) else 1, 1)
    per_token = _BYTES_PER_SCORED_TOKEN if body.get("logprobs") else _BYTES_PER_TOKEN
    num_texts = len(texts) if isinstance(texts, list) else 0
    return _FLOOR_BYTES + num_tokens * per_token + num_texts * _BYTES_PER_VECTOR


def bound_body(response: Any, *, max_reply_mb: float | None) -> None:
    """Have a response that is about to be read end with an error where it is longer than its request allows for.

    Args:
        response: Of httpx, as its hooks are handed it.
        max_reply_mb: The bound in megabytes, in place of the one that follows from the request.
    """
    encodings = response.headers.get("content-encoding", "")
    # Decompressed here, a piece at a time; the client would do all that came at once.
    with suppress(KeyError):
        del response.headers["content-encoding"]
    reader = _Reader(
        [name for one in encodings.split(",") if (name := one.strip().lower()) not in ("", "identity")],
        most=_FLOOR_BYTES if max_reply_mb is None else int(max_reply_mb * 1e6),
        find_most=(lambda: find_bound(_read_request(response))) if max_reply_mb is None else None,
        is_error=response.status_code >= 400,
    )
    response.stream = _BoundedBody(response.stream, reader)


def _read_request(response: Any) -> object:
    try:
        return json.loads(response.request.content)
    except (ValueError, RuntimeError):  # No body, or one that was sent in pieces.
        return None


class _BoundedBody(httpx.AsyncByteStream, httpx.SyncByteStream):
    """What comes of another stream, decompressed, until it is longer than it may be."""

    def __init__(self, stream: Any, reader: "_Reader") -> None:
        self._stream = stream
        self._reader = reader

    def __iter__(self) -> Iterator[bytes]:
        """Yield it in pieces, where the client is a blocking one."""
        for raw in self._stream:
            yield from self._reader.read(raw)
            if self._reader.is_done:
                return
        self._reader.check_end()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield it in pieces."""
        parts = aiter(self._stream)
        try:
            async for raw in parts:
                for piece in self._reader.read(raw):
                    yield piece
                if self._reader.is_done:
                    return
            self._reader.check_end()
        finally:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()

    def close(self) -> None:
        """Close the connection, or give it back where the body has been read to its end."""
        self._stream.close()

    async def aclose(self) -> None:
        """Do the same where the client is no blocking one."""
        await self._stream.aclose()


class _Reader:
    """Decompresses a body a piece at a time, and counts it.

    Args:
        encodings: What it is compressed with.
        most: How many bytes it may have.
        find_most: Returns how many it may have where it has more than that; absent where that holds for all.
        is_error: Whether it tells of a failed request. Its status counts then: it ends where it would be a fault.
    """

    def __init__(
        self, encodings: Sequence[str], *, most: int, find_most: Callable[[], int] | None, is_error: bool
    ) -> None:
        self.is_done = False
        self._is_error = is_error
        self._most = min(most, _ERROR_BYTES) if is_error else most
        self._find_most = None if is_error else find_most
        self._num_raw = self._num_read = 0
        self._encoding = ", ".join(encodings)
        self._inflater = _INFLATERS[self._encoding]() if self._encoding in _INFLATERS else None

    def read(self, raw: bytes) -> Iterator[bytes]:
        """Yield what comes of a further piece.

        Raises:
            OverlongReplyError: the body is too long.
            MalformedReplyError: it cannot be decompressed.
        """
        self._num_raw += len(raw)
        try:
            for piece in self._decompress(raw):
                self._num_read += len(piece)
                self._check_length()
                yield piece
            self._check_length()
        except MalformedReplyError:
            if not self._is_error:
                raise
            self.is_done = True

    def check_end(self) -> None:
        """Do nothing where the body is whole.

        Raises:
            MalformedReplyError: it was cut within what is compressed.
        """
        if self._inflater is not None and not self._inflater.is_whole and not self._is_error:
            raise MalformedReplyError(f"the server's answer breaks off in the middle of its {self._encoding}")

    def _decompress(self, raw: bytes) -> Iterator[bytes]:
        if not self._encoding:
            yield raw
        elif self._inflater is not None:
            yield from self._inflater.inflate(raw)
        else:
            raise MalformedReplyError(f"the server's answer is encoded as {self._encoding!r}, which nobody asked for")

    def _check_length(self) -> None:
        length = max(self._num_raw, self._num_read)
        if length > self._most and self._find_most is not None:
            # Read only here: a request may be long, and few answers are.
            self._most, self._find_most = self._find_most(), None
        if length > self._most:
            raise OverlongReplyError(
                f"the server's answer is longer than {self._most / 1e6:,.3g} MB, which no reply to this request should "
                "be; where a model's replies are that long, set max_reply_mb"
            )


class _Inflater:
    """Decompresses, never more than so much at once.

    Args:
        wbits: The forms that it may come in, as ``zlib`` numbers them: the next one is tried where one is not it.
    """

    def __init__(self, *wbits: int) -> None:
        self._forms = list(wbits)
        self._decoder = zlib.decompressobj(self._forms.pop(0))
        self._is_begun = False

    @property
    def is_whole(self) -> bool:
        """Whether its end has come; nothing at all is whole, too."""
        return self._decoder.eof or not self._is_begun

    def inflate(self, data: bytes) -> Iterator[bytes]:
        """Yield what comes of a further piece, in pieces; what follows the end is left out."""
        piece = b""
        while (data or len(piece) == _PIECE_BYTES) and not self._decoder.eof:
            try:
                piece = self._decoder.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                if self._is_begun or not self._forms:
                    raise MalformedReplyError(f"the server's answer cannot be decompressed: {error}") from error
                self._decoder = zlib.decompressobj(self._forms.pop(0))
                continue
            self._is_begun = True
            data = self._decoder.unconsumed_tail
            if piece:
                yield piece


_INFLATERS: Mapping[str, Callable[[], _Inflater]] = {
    "gzip": lambda: _Inflater(zlib.MAX_WBITS | 16),
    "x-gzip": lambda: _Inflater(zlib.MAX_WBITS | 16),
    # Some servers send it without the header that belongs to it.
    "deflate": lambda: _Inflater(zlib.MAX_WBITS, -zlib.MAX_WBITS),
}
