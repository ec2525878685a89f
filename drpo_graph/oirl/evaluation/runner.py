"""Evaluate ways of choosing prompts on a table of demonstrations, over repeated rounds."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Final

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray
from pydantic import Field

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.checks import check_demonstrations, check_outcomes_differ, choose_model
from drpo_graph.oirl.demonstrations import Demonstrations, OutcomeGrid
from drpo_graph.oirl.evaluation.choices import (
    NUM_ANCHORS,
    ROUTER,
    Choices,
    build_features,
    choose_fallback,
    choose_highest,
    choose_single,
    choose_with_anchors,
    list_sets,
    predict_round,
    route_round,
)
from drpo_graph.oirl.evaluation.labelled_calls import STRATEGIES, count_calls, measure_curve
from drpo_graph.oirl.evaluation.oracle import measure_oracle
from drpo_graph.oirl.evaluation.results import (
    BEST_SINGLE,
    Evaluation,
    FitRow,
    LabelledCallsRow,
    OracleRow,
    SpeedRow,
    SubsetRow,
)
from drpo_graph.oirl.evaluation.rounds import Round, Setting, open_round, open_setting
from drpo_graph.oirl.evaluation.statistics import (
    FIT_NUMBERS,
    Doubles,
    Group,
    group_predictions,
    measure_fit,
)
from drpo_graph.oirl.evaluation.tally import Tally
from drpo_graph.oirl.features import EmbeddedTexts, Floats, embed_texts
from drpo_graph.oirl.rewards.catalogue import DEFAULT_REWARD_MODEL
from drpo_graph.records import Record

LIGHT_MODELS: Final = ("network", "neighbours", "additive")
"""Learned in seconds; boosted trees take minutes."""


class EvaluationSettings(Record):
    """What is evaluated, and how often."""

    num_rounds: int = Field(default=20, ge=1)
    reward_models: tuple[str, ...] = LIGHT_MODELS
    compared_with: str | None = None
    """The reward model that the others are paired with, besides the best single prompt; ``xgboost-quick`` where that
    is evaluated, else none, when absent."""
    test_share: float = Field(default=0.3, gt=0, lt=1)
    num_held_out: int | None = Field(default=None, ge=1)
    has_subsets: bool = False
    seed: int = Field(default=0, ge=0)

    @property
    def paired_model(self) -> str:
        """The reward model that the others are paired with; empty where there is none."""
        return self.compared_with or ("xgboost-quick" if "xgboost-quick" in self.reward_models else "")


async def evaluate_demonstrations(
    demonstrations: Demonstrations,
    embeddings: Embeddings,
    *,
    settings: EvaluationSettings,
    model: str | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Return the tables of an evaluation.

    Args:
        demonstrations: The trials.
        embeddings: What embeds queries and prompts; asked for nothing where the trials cannot be used.
        settings: What is evaluated.
        model: Whose answers, where the trials are of several models.
        notice: Told what is going on, a line at a time.

    Raises:
        DemonstrationsError: the trials cannot be split or learned from, or say nothing.
        UsageError: there is no such reward model, or an extra is missing.
        EmbeddingsError: the texts cannot be embedded.
    """
    table = choose_model(demonstrations, model).without_unused()
    check_outcomes_differ(table)
    setting = open_setting(
        table, test_share=settings.test_share, num_held_out=settings.num_held_out, seed=settings.seed
    )
    _check_first_round(setting)
    texts = setting.table.queries, setting.table.prompts
    notice(f"embedding {len(texts[0])} queries and {len(texts[1])} prompts")
    queries, prompts = [await embed_texts(some, embeddings) for some in texts]
    run = _Run(setting, queries, prompts, settings=settings, notice=notice)
    # Computes for minutes: what else is on this loop goes on.
    return await asyncio.to_thread(run.carry_out, check_demonstrations(table))


def _check_first_round(setting: Setting) -> None:
    """Do nothing where the best single prompt of the first round was tried on some test query.

    Raises:
        DemonstrationsError: it was not, or nothing is left to learn from.
    """
    split = open_round(setting, 0)
    best = choose_single(split, setting, 1).by_set["training"][0]
    if np.isnan(setting.table.grid().mean[split.test_queries, best]).all():
        raise DemonstrationsError(
            f"The {len(setting.table)} demonstrations are too few to evaluate on: the best prompt in training was "
            f"tried on none of the {len(split.test_queries)} test queries. Try every prompt on more queries."
        )


class _Run:
    """One evaluation."""

    def __init__(
        self,
        setting: Setting,
        queries: EmbeddedTexts,
        prompts: EmbeddedTexts,
        *,
        settings: EvaluationSettings,
        notice: Callable[[str], None],
    ) -> None:
        self._setting, self._settings, self._notice = setting, settings, notice
        self._queries, self._prompts = queries, prompts
        self._grid: OutcomeGrid = setting.table.grid()
        self._tally = Tally(setting, self._grid.mean)
        self._fits: dict[tuple[str, str], list[FitRow]] = {}
        self._speeds: dict[str, list[tuple[float, float, float]]] = {}
        self._calibration: list[tuple[Floats, Floats]] = []
        self._num_open: dict[str, int] = {}

    def carry_out(self, notes: Sequence[str]) -> Evaluation:
        """Go through the rounds."""
        setting, settings = self._setting, self._settings
        tested: set[int] = set()
        for number in range(settings.num_rounds):
            split = open_round(setting, number)
            self._notice(f"round {number + 1} of {settings.num_rounds}: {len(split.train)} trials to learn from")
            tested.update(split.test_queries.tolist())
            self._add_baselines(split)
            self._add_models(split)
        rows = self._tally.rows(compared_with=settings.paired_model)
        seen = np.asarray(sorted(tested), dtype=np.intp)
        return Evaluation(
            num_rows=len(setting.table),
            num_queries=len(setting.table.queries),
            num_test_queries=len(seen),
            num_rounds=settings.num_rounds,
            training_prompts=tuple(setting.table.prompt_names[one] for one in setting.trained),
            held_out_prompts=tuple(setting.table.prompt_names[one] for one in setting.held_out),
            has_own_split=setting.has_own_split,
            leak=setting.leak.line if setting.leak is not None else None,
            notes=tuple(notes),
            compared_with=settings.paired_model,
            selection=rows,
            fits=tuple(_average_fits(one) for one in self._fits.values()),
            oracles=self._measure_oracles(seen),
            labelled_calls=self._measure_calls(seen),
            speeds=tuple(_average_speeds(name, one) for name, one in self._speeds.items()),
            open_share={name: count / settings.num_rounds for name, count in self._num_open.items()},
            calibration=self._group_calibration(),
            subsets=self._evaluate_subsets() if settings.has_subsets else (),
        )

    def _add_baselines(self, split: Round) -> None:
        setting, test = self._setting, split.test_queries
        outcomes = self._grid.mean[test].astype(np.float64)
        self._tally.add(BEST_SINGLE, choose_single(split, setting, len(test)), split)
        confidences = self._confidences()
        for name, prompts in list_sets(setting).items():
            some = outcomes[:, prompts]
            self._tally.add_values("mean of the prompts (random mixture)", name, _mean(some), split)
            hindsight = prompts[int(np.nanargmax(np.nan_to_num(np.nanmean(some, axis=0), nan=-1.0)))]
            self._tally.add_values("best prompt in hindsight", name, outcomes[:, hindsight], split)
            self._tally.add_values("oracle", name, _highest(some), split)
            if confidences is not None and not np.isnan(confidences[test][:, prompts]).all(axis=1).any():
                said = np.nan_to_num(confidences[test][:, prompts], nan=-1.0)
                self._tally.add("LLM self-critic", Choices({name: prompts[said.argmax(axis=1)]}), split)
        for number in np.concatenate([setting.trained, setting.held_out]):
            side = "training" if number in setting.trained else "held-out"
            self._tally.add_values(f"prompt {setting.table.prompt_names[number]}", side, outcomes[:, number], split)

    def _add_models(self, split: Round) -> None:
        features = build_features(self._setting, split, self._queries, self._prompts)
        for name in self._settings.reward_models:
            predicted = predict_round(name, features, split)
            self._speeds.setdefault(name, []).append(predicted[1:])
            self._tally.add(name, choose_highest(predicted.rewards, self._setting), split)
            fallback = choose_fallback(predicted.rewards, self._setting)
            self._tally.add(f"{name}, with the paper's fallback", fallback, split)
            self._add_fits(name, predicted.rewards, split)
            if name in LIGHT_MODELS:
                routed = route_round(name, features, split, setting=self._setting)
                title = f"{ROUTER} ({name})"
                self._tally.add(title, routed.choices, split)
                self._tally.add(f"{name}, crosswise", choose_highest(routed.rewards, self._setting), split)
                self._add_fits(f"{name}, crosswise", routed.rewards, split)
                self._add_anchored(f"{name}, crosswise, {NUM_ANCHORS} anchors", routed.rewards, split)
                self._num_open[title] = self._num_open.get(title, 0) + routed.is_open
                if name == DEFAULT_REWARD_MODEL:
                    tried = self._grid.mean[split.test_queries][:, self._setting.trained]
                    self._calibration.append((routed.rewards[:, self._setting.trained], tried))

    def _add_anchored(self, name: str, rewards: Floats, split: Round) -> None:
        outcomes = self._grid.mean[split.test_queries]
        found = choose_with_anchors(rewards, outcomes, setting=self._setting, split=split)
        if found is not None:
            chosen, is_anchor = found
            values = outcomes[np.arange(len(outcomes)), chosen].astype(np.float64)
            values[is_anchor] = np.nan
            self._tally.add_values(name, "held-out", values, split)

    def _add_fits(self, name: str, rewards: Floats, split: Round) -> None:
        outcomes = self._grid.mean[split.test_queries]
        for set_name, prompts in list_sets(self._setting).items():
            if set_name != "all":
                fit = measure_fit(rewards[:, prompts], outcomes[:, prompts])
                row = FitRow(name=name, prompts=set_name, **fit.model_dump())
                self._fits.setdefault((name, set_name), []).append(row)

    def _confidences(self) -> Floats | None:
        table = self._setting.table
        asked = ~np.isnan(table.confidences)
        if not asked.any():
            return None
        said = np.full(self._grid.mean.shape, np.nan, dtype=np.float32)
        said[table.query_ids[asked], table.prompt_ids[asked]] = table.confidences[asked]
        return said

    def _measure_oracles(self, tested: NDArray[np.intp]) -> tuple[OracleRow, ...]:
        rows = []
        for name, prompts in list_sets(self._setting).items():
            found = measure_oracle(self._grid.mean[tested][:, prompts])
            if found is not None:
                rows.append(OracleRow(prompts=name, **found._asdict(), noise_share=found.noise_share))
        return tuple(rows)

    def _measure_calls(self, tested: NDArray[np.intp]) -> tuple[LabelledCallsRow, ...]:
        prompts = self._setting.held_out
        if len(prompts) < 2:
            return ()
        outcomes = self._grid.mean[tested][:, prompts]
        outcomes = outcomes[~np.isnan(outcomes).any(axis=1)]
        if not len(outcomes):
            return ()
        curve = measure_curve(outcomes, seed=self._settings.seed)
        rows = []
        for name in (*self._settings.reward_models, *(f"{one}, crosswise" for one in self._settings.reward_models)):
            if (name, "held-out") in self._fits:
                value = self._tally.value(name, "held-out")
                calls = {one: count_calls(curve, value, strategy=one) for one in STRATEGIES}
                rows.append(
                    LabelledCallsRow(name=name, value=value, most_calls=curve[-1].num_calls, calls_by_strategy=calls)
                )
        return tuple(rows)

    def _group_calibration(self) -> tuple[Group, ...]:
        if not self._calibration:
            return ()
        predicted, found = (np.concatenate(parts) for parts in zip(*self._calibration, strict=True))
        tried = ~np.isnan(found)
        return tuple(group_predictions(predicted[tried].astype(np.float64), found[tried].astype(np.float64)))

    def _evaluate_subsets(self) -> tuple[SubsetRow, ...]:
        """Learn from every set of training prompts, as the paper does, in the first round's split."""
        setting, split = self._setting, open_round(self._setting, 0)
        features = build_features(setting, split, self._queries, self._prompts)
        name = (
            DEFAULT_REWARD_MODEL
            if DEFAULT_REWARD_MODEL in self._settings.reward_models
            else self._settings.reward_models[0]
        )
        outcomes = self._grid.mean[split.test_queries]
        rows = []
        for size in range(1, len(setting.trained) + 1):
            for some in combinations(setting.trained.tolist(), size):
                self._notice(f"subset of {size}: {', '.join(setting.table.prompt_names[one] for one in some)}")
                kept = setting._replace(trained=np.asarray(some, dtype=np.intp))
                train = split._replace(train=split.train.take(np.isin(split.train.prompt_ids, some)))
                predicted = predict_round(name, features, train)
                choices = choose_highest(predicted.rewards, kept).by_set
                values = {
                    one: float(np.nanmean(outcomes[np.arange(len(outcomes)), chosen]))
                    for one, chosen in choices.items()
                }
                single = choose_single(train, kept, len(outcomes)).by_set["training"]
                rows.append(
                    SubsetRow(
                        prompts=tuple(setting.table.prompt_names[one] for one in some),
                        reward_model=name,
                        values=values,
                        best_single=_mean_of(outcomes, single),
                    )
                )
        return tuple(rows)


def _mean(values: Doubles) -> Doubles:
    tried = ~np.isnan(values)
    found: Doubles = np.where(tried.any(axis=1), np.nansum(values, axis=1) / np.maximum(tried.sum(axis=1), 1), np.nan)
    return found


def _highest(values: Doubles) -> Doubles:
    best = np.nan_to_num(values, nan=-1.0).max(axis=1)
    found: Doubles = np.where(best < 0, np.nan, best)
    return found


def _average_fits(rows: Sequence[FitRow]) -> FitRow:
    numbers = {name: float(np.mean([getattr(one, name) for one in rows])) for name in FIT_NUMBERS}
    return rows[0].model_copy(update=numbers)


def _average_speeds(name: str, rounds: Sequence[tuple[float, float, float]]) -> SpeedRow:
    train_s, pair_us, batch_us = np.mean(rounds, axis=0).tolist()
    return SpeedRow(name=name, train_s=train_s, pair_us=pair_us, batch_us=batch_us)


def _mean_of(outcomes: Floats, chosen: NDArray[np.intp]) -> float:
    return float(np.nanmean(outcomes[np.arange(len(outcomes)), chosen]))
