"""How checkpoints become bytes and come back: as data, never as code.

LangGraph's own default imports and calls whatever a checkpoint names. What we save is JSON-native, so its strict list
(messages, sends, dates and the like) is more than enough.
"""

from typing import TYPE_CHECKING, Any, Final

from drpo_graph.errors import CheckpointError
from drpo_graph.safety.encryption import Vault

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol

_KINDS: Final = ("null", "bytes", "bytearray", "msgpack")
"""What LangGraph's serializer writes; what it can read beside them builds and calls what is named."""
_SEALED: Final = "+aes"


def make_serializer(vault: Vault | None = None) -> "SerializerProtocol":
    """Return the serializer that every saver of ours is given; a type outside the list comes back as plain data.

    Args:
        vault: Seals the bytes, bound to their kind, if given; then no others are read.
    """
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer  # Slow to import: only a run pays for it.

    # LangGraph copies a serializer with one of its own in the place of what wraps it: hence one class, and no wrapper.
    class DataSerializer(JsonPlusSerializer):
        """Reads the kinds of records that are written, and refuses all others."""

        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            kind, content = super().dumps_typed(obj)
            if vault is None:
                return kind, content
            return f"{kind}{_SEALED}", vault.seal_bytes(content, place=_place(kind))

        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            kind, content = _unseal(data, vault)
            if kind not in _KINDS:
                raise CheckpointError(f"A checkpoint holds a record of an unknown kind, {kind[:40]!r}: it was changed.")
            try:
                return super().loads_typed((kind, content))
            except (ValueError, TypeError, RecursionError) as error:
                raise CheckpointError(f"A checkpoint's record is no {kind}: it is damaged, or was changed.") from error

    return DataSerializer(pickle_fallback=False, allowed_json_modules=None, allowed_msgpack_modules=None)


def _unseal(data: tuple[str, bytes], vault: Vault | None) -> tuple[str, bytes]:
    kind, content = data
    if vault is None:
        return kind, content
    if not kind.endswith(_SEALED):
        raise CheckpointError("An encrypted checkpoint holds a record that is not sealed: it was changed.")
    kind = kind.removesuffix(_SEALED)
    return kind, vault.open_bytes(content, place=_place(kind))


def _place(kind: str) -> str:
    return f"checkpoint/{kind}"
