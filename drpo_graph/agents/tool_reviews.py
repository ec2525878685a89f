"""Reviews of a run that an agent's tool carries out, asked in the agent's own graph."""

from dataclasses import dataclass
from pathlib import Path

from langgraph.types import interrupt

from drpo_graph.errors import ReviewError
from drpo_graph.runs.decisions import decide, pending_review
from drpo_graph.search.reviews import as_json
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.protocols import Storage


@dataclass(slots=True)
class GraphReviews:
    """Asks with LangGraph's ``interrupt`` what a run waits for, in one task of a graph with a checkpointer.

    A task that is answered begins anew, and LangGraph tells its questions apart by their order alone. So the run keeps
    which levels the task has asked for: a level may also be decided elsewhere, and is then not asked for.
    """

    checkpoint: Path | str | Storage
    run_id: str
    task_id: str
    num_answered: int = 0
    """Questions that this execution of the task has had answered."""

    async def ask(self) -> None:
        """Return when the run waits for no decision any more.

        Raises:
            GraphInterrupt: it is still to be made; the graph is gone on with by ``Command(resume=decision)``.
        """
        problem = ""
        while (request := await pending_review(self.run_id, checkpoint=self.checkpoint)) is not None:
            asked = await self._note_asked(request.level)
            answer = interrupt(as_json(request.model_copy(update={"problem": problem})))
            self.num_answered += 1
            if self.num_answered < len(asked) or asked[-1] != request.level:
                # To an earlier question, which the run has gone on from.
                continue
            try:
                await decide(self.run_id, answer, checkpoint=self.checkpoint)
            except ReviewError as error:
                problem = str(error)

    async def _note_asked(self, level: int) -> list[int]:
        """Return the levels of the task's questions; where all are answered, with this one's as a new one."""
        async with find_storage(self.checkpoint).open_run(self.run_id, must_exist=True) as opened:
            archive, name = Archive(opened.store, self.run_id), f"asked/{self.task_id}"
            stored = (await archive.get("run", name) or {}).get("levels")
            asked = [one for one in stored if isinstance(one, int)] if isinstance(stored, list) else []
            if self.num_answered == len(asked):
                asked.append(level)
                await archive.put("run", name, {"levels": [*asked]})
            return asked
