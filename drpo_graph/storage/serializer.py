"""How checkpoints become bytes and come back: as data, never as code, and for their own run alone.

LangGraph's own default imports and calls whatever a checkpoint names. What we save is JSON-native, so its strict list
(messages, sends, dates and the like) is more than enough.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from drpo_graph.errors import CheckpointError, DamagedError
from drpo_graph.safety.encryption import Vault
from drpo_graph.storage.damage import SUM_BYTES, sum_of, tell_damage

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple
    from langgraph.checkpoint.serde.base import SerializerProtocol

_KINDS: Final = ("null", "bytes", "bytearray", "msgpack")
"""What LangGraph's serializer writes; what it can read beside them builds and calls what is named."""
_SUMMED: Final = "+sum"
"""What follows the kind of what carries a sum; what an earlier version wrote has a kind alone."""
_SEALED, _SEALED_ANYWHERE = "+aes2", "+aes"
"""What follows the kind of what is sealed; the latter, of an earlier version, is not bound to a run."""
_WRITE: Final = "drpo_graph/write"
"""Marks what a task wrote, with who wrote it and where to."""

_thread_id: ContextVar[str] = ContextVar("thread_id", default="")


@contextmanager
def bound_to(config: "RunnableConfig | None") -> Iterator[None]:
    """Let a serializer seal and open for a run; what it meets of another one is refused."""
    token = _thread_id.set(str(config["configurable"]["thread_id"]) if config else "")
    try:
        yield
    finally:
        _thread_id.reset(token)


@contextmanager
def reading(config: "RunnableConfig | None") -> Iterator[None]:
    """Be :func:`bound_to` a run, and tell as damage what LangGraph itself cannot read of a row."""
    with bound_to(config):
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise tell_bound("it cannot be read") from error


def bind_writes(writes: Sequence[tuple[str, Any]], task_id: str) -> list[tuple[str, Any]]:
    """Return what a task wrote so that each value names its task and channel."""
    return [(channel, {_WRITE: [task_id, channel], "value": value}) for channel, value in writes]


def check_bound(found: "CheckpointTuple") -> "CheckpointTuple":
    """Return a checkpoint with what tasks wrote to it, each as it was given.

    Raises:
        DamagedError: the checkpoint stands in another one's place, or a value in another task's or channel's.
    """
    if found.checkpoint.get("id") != found.config["configurable"]["checkpoint_id"]:
        raise tell_bound("a record stands in the place of another one")
    writes = []
    for task_id, channel, value in found.pending_writes or ():
        if isinstance(value, Mapping) and _WRITE in value:
            if value[_WRITE] != [task_id, channel]:
                raise tell_bound("a record stands in the place of another one")
            value = value["value"]
        writes.append((task_id, channel, value))
    return found._replace(pending_writes=writes)


def make_serializer(vault: Vault | None = None) -> "SerializerProtocol":
    """Return the serializer that every saver of ours is given; a type outside the list comes back as plain data.

    Args:
        vault: Seals the bytes, bound to their run and kind, if given; then no others are read. Without one, they carry
            a sum over the same.
    """
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer  # Slow to import: only a run pays for it.

    # LangGraph copies a serializer with one of its own in the place of what wraps it: hence one class, and no wrapper.
    class DataSerializer(JsonPlusSerializer):
        """Reads the kinds of records that are written, and refuses all others."""

        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            kind, content = super().dumps_typed(obj)
            if vault is None:
                return f"{kind}{_SUMMED}", sum_of(content, place=_place(kind)) + content
            return f"{kind}{_SEALED}", vault.seal_bytes(content, place=_place(kind))

        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            kind, content = _unbind(data, vault)
            if kind not in _KINDS:
                raise tell_bound(f"a record of it is of an unknown kind, {kind[:40]!r}: it was changed")
            try:
                return super().loads_typed((kind, content))
            except (ValueError, TypeError, RecursionError) as error:
                raise tell_bound(f"a record of it is no {kind}") from error

    return DataSerializer(pickle_fallback=False, allowed_json_modules=None, allowed_msgpack_modules=None)


def _unbind(data: tuple[str, bytes], vault: Vault | None) -> tuple[str, bytes]:
    """Return the kind and content of what was bound, or of what an earlier version left unbound."""
    kind, content = data
    if vault is None:
        if not kind.endswith(_SUMMED):
            return kind, content
        kind, made, content = kind.removesuffix(_SUMMED), content[:SUM_BYTES], content[SUM_BYTES:]
        if made != sum_of(content, place=_place(kind)):
            raise tell_bound("a record of it is not what was stored for this run")
        return kind, content
    for suffix, place in ((_SEALED, _place), (_SEALED_ANYWHERE, _place_anywhere)):
        if kind.endswith(suffix):
            kind = kind.removesuffix(suffix)
            try:
                return kind, vault.open_bytes(content, place=place(kind))
            except CheckpointError as error:
                raise tell_bound(str(error).rstrip(".")) from error
    raise tell_bound("an encrypted checkpoint holds a record that is not sealed: it was changed")


def _place(kind: str) -> str:
    return f"checkpoint/{_thread_id.get()}/{kind}"


def _place_anywhere(kind: str) -> str:
    return f"checkpoint/{kind}"


def tell_bound(cause: str) -> DamagedError:
    """Return the error of a damaged checkpoint of the run that is being read."""
    thread_id = _thread_id.get() or None
    what = f"Run {thread_id!r}: a checkpoint" if thread_id else "A checkpoint"
    return tell_damage(what, thread_id=thread_id, cause=cause)
