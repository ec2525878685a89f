"""How checkpoints become bytes and come back: as data, never as code.

LangGraph's own default imports and calls whatever a checkpoint names. What we save is JSON-native, so its strict list
(messages, sends, dates and the like) is more than enough.
"""

from typing import TYPE_CHECKING

from drpo_graph.vault import Vault

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol


def make_serializer(vault: Vault | None = None) -> "SerializerProtocol":
    """Return the serializer that every saver of ours is given; a type outside the list comes back as plain data."""
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer  # Slow to import: only a run pays for it.

    plain = JsonPlusSerializer(pickle_fallback=False, allowed_json_modules=None, allowed_msgpack_modules=None)
    return plain if vault is None else vault.protect(plain)
