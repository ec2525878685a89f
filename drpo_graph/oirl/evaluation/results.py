"""What an evaluation found, as records."""

from typing import Final

from drpo_graph.oirl.evaluation.statistics import Fit, Group, Interval
from drpo_graph.records import Record

BEST_SINGLE: Final = "best single prompt (in training)"


class SelectionRow(Record):
    """One way of choosing a prompt, among one set of prompts."""

    name: str
    prompts: str
    """``training``, ``held-out`` or ``all``."""
    value: Interval
    """Mean outcome of what was chosen, over queries."""
    over_single: Interval
    """Paired difference to the best single training prompt, on the same queries."""
    over_compared: Interval | None
    """Likewise to the reward model that all are compared with; ``None`` where that was not evaluated."""
    spread_over_rounds: float
    """Standard deviation of the mean over rounds."""


class FitRow(Fit):
    """How well a reward model's probabilities fit the outcomes of a set of prompts, averaged over rounds."""

    name: str
    prompts: str


class OracleRow(Record):
    """The oracle's lead, and what part of it is noise."""

    prompts: str
    oracle: float
    best_single: float
    expected: float
    noise_share: float


class LabelledCallsRow(Record):
    """What a choice among unseen prompts saves: labelled calls that would choose a prompt as good."""

    name: str
    value: float
    most_calls: int
    """The most that were tried."""
    calls_by_strategy: dict[str, int | None]
    """``None``: more than that."""


class SpeedRow(Record):
    """What a reward model costs."""

    name: str
    train_s: float
    pair_us: float
    """Microseconds to predict a (query, prompt) pair by itself."""
    batch_us: float
    """Per pair, 10,000 of them at once."""


class SubsetRow(Record):
    """What was learned from one set of training prompts."""

    prompts: tuple[str, ...]
    reward_model: str
    values: dict[str, float]
    """Mean outcome by set of prompts that are chosen among."""
    best_single: float


class Evaluation(Record):
    """All tables of one evaluation; proportions from 0 to 1."""

    num_rows: int
    num_queries: int
    num_test_queries: int
    num_rounds: int
    training_prompts: tuple[str, ...]
    held_out_prompts: tuple[str, ...]
    has_own_split: bool
    leak: str | None
    notes: tuple[str, ...]
    compared_with: str
    selection: tuple[SelectionRow, ...]
    fits: tuple[FitRow, ...]
    oracles: tuple[OracleRow, ...]
    labelled_calls: tuple[LabelledCallsRow, ...]
    speeds: tuple[SpeedRow, ...]
    open_share: dict[str, float]
    """In which share of the rounds each router chose by query; in the others it abstained."""
    calibration: tuple[Group, ...]
    """Of the default reward model, crosswise, on the training prompts."""
    subsets: tuple[SubsetRow, ...]
