"""Which trials a collection is made of, in order, without holding them all: the state names a place in this order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

from pydantic import JsonValue

from drpo_graph.errors import StateFormatError
from drpo_graph.oirl.collection.inputs import Question, TriedPrompt
from drpo_graph.storage.archive import Archive

STEP_SIZE: Final = 512
"""Trials of one step of the graph: what a checkpoint holds is bounded, and the wait for a step's last call is rare."""


class Unit(NamedTuple):
    """One trial, by numbers."""

    query: int
    """The query's place in the run's order."""
    prompt: int
    """The prompt's."""
    draw: int
    """Which draw of the pair."""

    @property
    def key(self) -> str:
        """Its key in the archive."""
        return f"{self.query}/{self.prompt}/{self.draw}"

    @classmethod
    def parse(cls, key: str) -> "Unit":
        """Return the unit of a key."""
        return cls(*map(int, key.split("/")))


@dataclass(frozen=True, slots=True)
class Plan:
    """The order of the trials: query by query, prompt by prompt."""

    model: str
    """Who answers."""
    checker: str
    num_trials: int
    num_prompts: int
    seen_prompts: tuple[int, ...]
    """Those that are not held out."""
    is_test: tuple[bool, ...]
    """Of each query, whether it is on the test side."""

    @classmethod
    def make(
        cls, questions: Sequence[Question], prompts: Sequence[TriedPrompt], *, num_trials: int, model: str, checker: str
    ) -> "Plan":
        """Return the plan of a run."""
        return cls(
            model=model,
            checker=checker,
            num_trials=num_trials,
            num_prompts=len(prompts),
            seen_prompts=tuple(number for number, one in enumerate(prompts) if one.split != "test"),
            is_test=tuple(one.split == "test" for one in questions),
        )

    @classmethod
    async def load(cls, archive: Archive) -> "Plan":
        """Return the plan that a run has laid down.

        Raises:
            StateFormatError: there is none.
        """
        stored = await archive.get("run", "plan")
        if stored is None:
            raise StateFormatError(f"Run {archive.run_id!r}: its store lacks its plan.")
        return cls.parse(stored)

    @classmethod
    def parse(cls, stored: Mapping[str, JsonValue]) -> "Plan":
        """Return a plan from its stored form."""
        return cls(
            model=str(stored["model"]),
            checker=str(stored["checker"]),
            num_trials=cast(int, stored["num_trials"]),
            num_prompts=cast(int, stored["num_prompts"]),
            seen_prompts=tuple(cast(list[int], stored["seen_prompts"])),
            is_test=tuple(flag == "1" for flag in str(stored["is_test"])),
        )

    def as_json(self) -> dict[str, JsonValue]:
        """Return the form that is stored."""
        return {
            "model": self.model,
            "checker": self.checker,
            "num_trials": self.num_trials,
            "num_prompts": self.num_prompts,
            "seen_prompts": list(self.seen_prompts),
            "is_test": "".join("01"[flag] for flag in self.is_test),
        }

    @property
    def num_queries(self) -> int:
        """Queries of the run."""
        return len(self.is_test)

    @property
    def num_planned(self) -> int:
        """Trials in all."""
        return sum(map(self._count, self.is_test))

    def take(self, position: int, size: int) -> list[Unit]:
        """Return so many units from a place in the order on; fewer at its end."""
        return [unit for unit, _ in zip(self._from(position), range(size), strict=False)]

    def _from(self, position: int) -> Iterator[Unit]:
        passed = 0
        for query, is_test in enumerate(self.is_test):
            count = self._count(is_test)
            passed += count
            if passed <= position:
                continue
            prompts = range(self.num_prompts) if is_test else self.seen_prompts
            for place in range(max(0, position - (passed - count)), count):
                yield Unit(query, prompts[place // self.num_trials], place % self.num_trials)

    def _count(self, is_test: bool) -> int:
        return (self.num_prompts if is_test else len(self.seen_prompts)) * self.num_trials
