"""What each way of choosing brought, query by query, over the rounds of an evaluation."""

import numpy as np

from drpo_graph.oirl.evaluation.choices import Choices
from drpo_graph.oirl.evaluation.results import BEST_SINGLE, SelectionRow
from drpo_graph.oirl.evaluation.rounds import Round, Setting
from drpo_graph.oirl.evaluation.statistics import Doubles, QueryMeans, bootstrap
from drpo_graph.oirl.features import Floats


class Tally:
    """What each way of choosing brought, query by query, over the rounds."""

    def __init__(self, setting: Setting, outcomes: Floats) -> None:
        self._outcomes = outcomes
        self._values: dict[tuple[str, str], QueryMeans] = {}
        self._by_round: dict[tuple[str, str], list[float]] = {}
        self._num_queries = len(setting.table.queries)

    def add(self, name: str, choices: Choices, split: Round) -> None:
        """Add a round's choices."""
        for set_name, chosen in choices.by_set.items():
            self.add_values(name, set_name, self._outcomes[split.test_queries, chosen].astype(np.float64), split)

    def add_values(self, name: str, set_name: str, values: Doubles, split: Round) -> None:
        """Add a round's values, one per test query."""
        key = (name, set_name)
        self._values.setdefault(key, QueryMeans(self._num_queries)).add(split.test_queries, values)
        if not np.isnan(values).all():
            self._by_round.setdefault(key, []).append(float(np.nanmean(values)))

    def rows(self, *, compared_with: str) -> tuple[SelectionRow, ...]:
        """Return a row for each way of choosing in each set."""
        values = {key: one.values for key, one in self._values.items()}
        single = values[BEST_SINGLE, "training"]
        rows = []
        for (name, set_name), own in values.items():
            other = values.get((compared_with, set_name))
            rows.append(
                SelectionRow(
                    name=name,
                    prompts=set_name,
                    value=bootstrap(own),
                    over_single=bootstrap(own - single),
                    over_compared=bootstrap(own - other) if other is not None else None,
                    spread_over_rounds=float(np.std(self._by_round.get((name, set_name), [np.nan]))),
                )
            )
        return tuple(rows)

    def value(self, name: str, set_name: str) -> float:
        """Return the mean over queries of one way of choosing."""
        return float(np.nanmean(self._values[name, set_name].values))
