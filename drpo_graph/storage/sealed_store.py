"""A LangGraph store whose values are bound to their places: by a sum, or sealed where there is a key.

Namespaces and keys, which are ids and hashes, stay readable.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

from langgraph.store.base import BaseStore, GetOp, Item, Op, PutOp, Result, SearchOp
from pydantic import JsonValue

from drpo_graph.errors import CheckpointError, DamagedError
from drpo_graph.safety.encryption import KEY_VARIABLE, Vault
from drpo_graph.storage.damage import LOST, UNREADABLE, read_json, sum_of_value, tell_record

_MARK_NAMESPACE, _MARK_KEY = ("drpo_vault",), "mark"
_FIELD = "sealed"
_SUM = "drpo_sum"
_ItemT = TypeVar("_ItemT", bound=Item)


class BoundStore(BaseStore):
    """Binds what is put into the store behind it, each value to its own place; what was changed or moved is refused.

    Values that an earlier version put there without a sum are read as they are.
    """

    def __init__(self, store: BaseStore, vault: Vault | None, *, lost: list[DamagedError] | None = None) -> None:
        """Make a store; given a list, damaged records are added to it, and read as :data:`LOST`."""
        self.inner = store
        self._vault = vault
        self._lost = lost

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute operations."""
        given = list(ops)
        return self._open_all(given, self.inner.batch([self._close(op) for op in given]))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute operations."""
        given = list(ops)
        return self._open_all(given, await self.inner.abatch([self._close(op) for op in given]))

    def _close(self, op: Op) -> Op:
        if isinstance(op, SearchOp) and (op.filter or op.query):
            raise ValueError("this store cannot be searched by what its values hold")
        if not isinstance(op, PutOp) or op.value is None:
            return op
        if self._vault is None:
            made = sum_of_value(op.value, place="/".join((*op.namespace, op.key)))
            return op._replace(value={**op.value, _SUM: made})
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
        opened = copy.copy(item)
        try:
            opened.value = self._read(item)
        except DamagedError as error:
            if self._lost is None:
                raise
            self._lost.append(error)
            opened.value = LOST
        return opened

    def _read(self, item: Item) -> dict[str, JsonValue]:
        if item.value is UNREADABLE or not isinstance(item.value, dict):
            raise tell_record(item.namespace, item.key, cause="it is no JSON object, it was changed")
        if self._vault is None:
            value = dict(item.value)
            made = value.pop(_SUM, None)
            place = "/".join((*item.namespace, item.key))
            if made is not None and made != sum_of_value(value, place=place):
                raise tell_record(item.namespace, item.key)
            return value
        sealed = _sealed_in(item)
        if not isinstance(sealed, str):
            raise tell_record(
                item.namespace, item.key, cause="it is not sealed, in an encrypted checkpoint: it was changed"
            )
        try:
            opened = self._vault.open(sealed, place=_place(item.namespace, item.key))
        except CheckpointError as error:
            raise tell_record(item.namespace, item.key, cause=str(error).rstrip(".")) from error
        return read_json(opened)


async def seal_store(
    store: BaseStore, vault: Vault | None, *, name: str, is_new: bool, lost: list[DamagedError] | None = None
) -> BaseStore:
    """Return the store as it is to be used: sealed, if there is a key, and refused where the key is not its own.

    Args:
        vault: What the environment's key makes; ``None`` without one.
        is_new: Whether an empty store may be marked as sealed with this key.
        lost: Gets what is damaged, if given: the rest is then read all the same.

    Raises:
        CheckpointError: it is sealed and there is no key or another one, or it holds runs that are not sealed.
    """
    mark = await store.aget(_MARK_NAMESPACE, _MARK_KEY)
    if vault is None:
        if mark is not None:
            raise CheckpointError(f"Checkpoint {name} is encrypted. Set {KEY_VARIABLE} to the key of its runs.")
    elif mark is not None:
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
    return BoundStore(store, vault, lost=lost)


def _place(namespace: Sequence[str], key: str) -> str:
    return json.dumps([*namespace, key])


def _sealed_in(item: Item) -> object:
    # Of a changed record, the value may be anything.
    return item.value.get(_FIELD) if isinstance(item.value, dict) else None
