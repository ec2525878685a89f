"""What a display knows of a run over ICL examples: how far it is, and what became of each example."""

from dataclasses import dataclass, field

from drpo_graph.events.schema import ICLExampleFinished, ICLStarted


@dataclass(slots=True)
class ExamplesView:
    """Everything that a display shows of the examples."""

    num_examples: int
    num_iters: int
    num_samples: int
    finished: dict[str, ICLExampleFinished] = field(default_factory=dict)
    """By the example's id, in the order in which they were finished; one that repeats after a resume counts once."""

    @classmethod
    def of(cls, event: ICLStarted) -> "ExamplesView":
        """Return the view of a run that begins or goes on."""
        return cls(event.num_examples, event.num_iters, event.num_samples)

    def remaining_s(self, elapsed_s: float) -> float | None:
        """Return about how long the rest takes, ``None`` before the first example is finished."""
        num_done = len(self.finished)
        return elapsed_s / num_done * (self.num_examples - num_done) if num_done else None
