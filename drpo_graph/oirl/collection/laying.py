"""Lay a collection down in its archive, once, and in batches: it may have a million questions."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from drpo_graph.errors import DatasetError
from drpo_graph.oirl.collection.inputs import Question, TriedPrompt
from drpo_graph.oirl.collection.plan import Plan
from drpo_graph.parts.checkers import CRITIC
from drpo_graph.records import Record
from drpo_graph.storage.archive import Archive

_BATCH: Final = 500


async def lay_down(
    archive: Archive, questions: Sequence[Question], prompts: Sequence[TriedPrompt], *, plan: Plan, data: str
) -> None:
    """Store the questions and prompts by number, and the plan with the digest of both.

    All questions are stored, since every one is asked. The critic finds their queries by ids.
    """
    await archive.put_all("prompts", {str(n): one.model_dump(mode="json") for n, one in enumerate(prompts)})
    numbered = iter(enumerate(questions))
    # A batch at a time: of a million questions, the stored forms together would take gigabytes.
    while batch := list(islice(numbered, _BATCH)):
        await archive.put_all("questions", {str(n): one.model_dump(mode="json") for n, one in batch})
        if plan.checker == CRITIC:
            await archive.put_all("queries", {one.query.id: one.query.model_dump(mode="json") for _, one in batch})
    await archive.put("run", "plan", {**plan.as_json(), "data": data})


async def find_laid_down(archive: Archive) -> str:
    """Return the digest of the questions and prompts that are laid down.

    Raises:
        DatasetError: there are none.
    """
    stored = await archive.get("run", "plan")
    if stored is None:
        raise DatasetError("There is no query: expected at least one.")
    return str(stored["data"])


def digest_data(questions: Iterable[Question], prompts: Iterable[TriedPrompt]) -> str:
    """Return the SHA-256 of both as one JSON value in canonical form, which is never held as a whole."""
    digest = hashlib.sha256(b"[")
    groups: tuple[Iterable[Record], ...] = (questions, prompts)
    for group_mark, group in zip((b"[", b"],["), groups, strict=True):
        digest.update(group_mark)
        for number, one in enumerate(group):
            text = json.dumps(one.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
            digest.update(b"," * bool(number) + text.encode())
    digest.update(b"]]")
    return digest.hexdigest()
