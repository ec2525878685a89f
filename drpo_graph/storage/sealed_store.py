"""A LangGraph store whose values are sealed; namespaces and keys, which are ids and hashes, stay readable."""

import copy
import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

from langgraph.store.base import BaseStore, GetOp, Item, Op, PutOp, Result, SearchOp

from drpo_graph.errors import CheckpointError
from drpo_graph.safety.encryption import KEY_VARIABLE, Vault

_MARK_NAMESPACE, _MARK_KEY = ("drpo_vault",), "mark"
_FIELD = "sealed"
_ItemT = TypeVar("_ItemT", bound=Item)


class SealedStore(BaseStore):
    """Seals what is put into the store behind it, each value for its own place."""

    def __init__(self, store: BaseStore, vault: Vault) -> None:
        self._store = store
        self._vault = vault

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute operations."""
        given = list(ops)
        return self._open_all(given, self._store.batch([self._seal(op) for op in given]))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute operations."""
        given = list(ops)
        return self._open_all(given, await self._store.abatch([self._seal(op) for op in given]))

    def _seal(self, op: Op) -> Op:
        if isinstance(op, SearchOp) and (op.filter or op.query):
            raise ValueError("an encrypted store cannot be searched by what its values hold")
        if not isinstance(op, PutOp) or op.value is None:
            return op
        content = json.dumps(op.value, separators=(",", ":")).encode()
        return op._replace(value={_FIELD: self._vault.seal(content, place=_place(op.namespace, op.key))}, index=False)

    def _open_all(self, ops: Sequence[Op], results: Sequence[Result]) -> list[Result]:
        return [self._open_result(op, result) for op, result in zip(ops, results, strict=True)]

    def _open_result(self, op: Op, result: Result) -> Result:
        if isinstance(op, GetOp) and isinstance(result, Item):
            return self._open(result)
        if isinstance(op, SearchOp) and isinstance(result, list):
            return [self._open(one) for one in result if isinstance(one, Item)]
        return result

    def _open(self, item: _ItemT) -> _ItemT:
        place, sealed = _place(item.namespace, item.key), _sealed_in(item)
        if not isinstance(sealed, str):
            raise CheckpointError(
                f"An encrypted checkpoint holds a record ({place!r}) that is not sealed: it was changed."
            )
        opened = copy.copy(item)
        opened.value = json.loads(self._vault.open(sealed, place=place))
        return opened


async def seal_store(store: BaseStore, vault: Vault | None, *, name: str, is_new: bool) -> BaseStore:
    """Return the store as it is to be used: sealed, if there is a key, and refused where the key is not its own.

    Args:
        vault: What the environment's key makes; ``None`` without one.
        is_new: Whether an empty store may be marked as sealed with this key.

    Raises:
        CheckpointError: it is sealed and there is no key or another one, or it holds runs that are not sealed.
    """
    mark = await store.aget(_MARK_NAMESPACE, _MARK_KEY)
    if vault is None:
        if mark is not None:
            raise CheckpointError(f"Checkpoint {name} is encrypted. Set {KEY_VARIABLE} to the key of its runs.")
        return store
    if mark is not None:
        try:
            vault.open(str(_sealed_in(mark)), place=_MARK_KEY)
        except CheckpointError:
            raise CheckpointError(
                f"Checkpoint {name} is encrypted with another key. Set {KEY_VARIABLE} to the key "
                "of its runs, or give another place with --checkpoint."
            ) from None
    elif await store.asearch(("drpo",), limit=1):
        raise CheckpointError(
            f"Checkpoint {name} holds runs that are not encrypted. Give another place with --checkpoint, or unset "
            f"{KEY_VARIABLE}."
        )
    elif is_new:
        sealed = vault.seal(b"drpo_graph", place=_MARK_KEY)
        await store.abatch([PutOp(_MARK_NAMESPACE, _MARK_KEY, {_FIELD: sealed}, index=False)])
    return SealedStore(store, vault)


def _place(namespace: Sequence[str], key: str) -> str:
    return json.dumps([*namespace, key])


def _sealed_in(item: Item) -> object:
    # Of a changed record, the value may be anything.
    return item.value.get(_FIELD) if isinstance(item.value, dict) else None
