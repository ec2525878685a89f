"""The router: for each query the best of N prompts, without asking a model (Prompt-OIRL, section 3.3)."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import Runnable, RunnableConfig
from numpy.typing import NDArray
from typing_extensions import TypedDict

from drpo_graph.errors import RewardModelError
from drpo_graph.oirl.features import PROBE, EmbeddedTexts, FeatureTable, Floats, embed_probe, normalise_vectors, only
from drpo_graph.oirl.gate import choose
from drpo_graph.oirl.rewards.logits import to_probabilities
from drpo_graph.oirl.router_file import open_embeddings_of, read_router, write_router
from drpo_graph.oirl.router_parts import KnownPrompt, RouterParts, price_prompts
from drpo_graph.parts.choosers import PromptChoice
from drpo_graph.safety.texts import clean_surrogates, shorten

RouterInput = str | Mapping[str, object]
"""A query, or a mapping with ``query``."""

_HALF = 0.5


class RouterQuery(TypedDict):
    """The input by name."""

    query: str


class RoutedBatch(NamedTuple):
    """Choices for many queries, as arrays."""

    chosen: NDArray[np.intp]
    """Per query, the prompt's number in ``router.prompts``."""
    rewards: Floats
    """Expected outcomes, ``(num_queries, num_prompts)``."""
    confidences: Floats
    """Per query, as :attr:`~drpo_graph.parts.choosers.PromptChoice.confidence`."""


class PromptRouter(Runnable[RouterInput, PromptChoice]):
    """Chooses a prompt for each query. A Runnable: ``invoke``, ``ainvoke``, ``batch`` and ``abatch``.

    Args:
        parts: What was learned; see :func:`~drpo_graph.oirl.training.train_router`.
        embeddings: The model that the texts were embedded with; checked on the first query.
    """

    def __init__(self, parts: RouterParts, embeddings: Embeddings) -> None:
        self.parts = parts
        self._embeddings = embeddings
        self._is_checked = False
        self._prompt_features = _describe_prompts(parts)
        self._best = find_best_prompt(parts)

    @property
    def InputType(self) -> type[RouterQuery]:  # noqa: N802  # LangChain's name.
        """What a tool made of the router takes: ``query``."""
        return RouterQuery

    @property
    def prompts(self) -> tuple[KnownPrompt, ...]:
        """The prompts to choose from."""
        return self.parts.prompts

    @property
    def embeddings(self) -> Embeddings:
        """What embeds queries and prompts."""
        return self._embeddings

    @property
    def best_prompt(self) -> str:
        """The best single prompt: what is chosen where nothing speaks for another one."""
        return self.parts.prompts[self._best].text

    @property
    def has_abstained(self) -> bool:
        """Whether every query gets the best single prompt."""
        return self.parts.policy == "safe" and not self.parts.gate.is_open

    def route(self, queries: EmbeddedTexts) -> RoutedBatch:
        """Return the choices for queries that are embedded already."""
        features = FeatureTable(self.parts.space.of_queries(queries), self._prompt_features)
        shifts = np.asarray([one.shift for one in self.prompts], dtype=np.float32)
        members = self.parts.ensemble.predict(features) + shifts
        rewards = to_probabilities(members.mean(axis=0))
        chosen = self._choose(rewards)
        rows = np.arange(len(rewards))
        gains = to_probabilities(members)
        gains = gains[:, rows, chosen] - gains[:, :, self._best]
        return RoutedBatch(chosen, rewards, _be_confident(gains))

    def invoke(self, input: RouterInput, config: RunnableConfig | None = None, **kwargs: Any) -> PromptChoice:
        """Return the choice for a query.

        Raises:
            RewardModelError: the input has no query, or the embeddings are not those that were learned with.
            EmbeddingsError: they cannot be had.
        """
        return self._call_with_config(self._choose_one, input, config)

    async def ainvoke(self, input: RouterInput, config: RunnableConfig | None = None, **kwargs: Any) -> PromptChoice:
        """Return the choice for a query, as :meth:`invoke` does."""
        return await self._acall_with_config(self._achoose_one, input, config)

    async def achoose(self, query: str) -> PromptChoice:
        """Return the choice for a query."""
        return await self.ainvoke(query)

    def batch(
        self,
        inputs: list[RouterInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[PromptChoice]:
        """Return the choices for queries, embedded and predicted together; one that is blank stops no other."""
        return self._batch_with_config(self._choose_all, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[RouterInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[PromptChoice]:
        """Return the choices for queries, as :meth:`batch` does."""
        return await self._abatch_with_config(self._achoose_all, inputs, config, return_exceptions=return_exceptions)

    def save(self, path: Path | str) -> None:
        """Write the router to a ``.npz`` file, without pickle, replaced in one step.

        Raises:
            RewardModelError: the file cannot be written, or its name ends otherwise.
        """
        write_router(Path(path), self.parts)

    @classmethod
    def load(
        cls, path: Path | str, *, embeddings: Embeddings | None = None, base_url: str | None = None
    ) -> "PromptRouter":
        """Return the router in a file.

        Args:
            path: A file that :meth:`save` wrote.
            embeddings: The model that its texts were embedded with; the one that it names when absent.
            base_url: Where that is served, ending in ``/v1``.

        Raises:
            RewardModelError: the file is missing, damaged, or no router.
            UsageError: an extra is missing, the embeddings cannot be opened, or they were served elsewhere than usual
                and nobody says where.
        """
        parts = read_router(Path(path))
        return cls(parts, embeddings or open_embeddings_of(parts.provenance, base_url=base_url))

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, which a client's connections cannot be.

        Raises:
            TypeError: always.
        """
        raise TypeError("A PromptRouter is not pickled: save it to a file, and load that.")

    def __copy__(self) -> "PromptRouter":
        """Return the router itself, which nothing changes."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "PromptRouter":
        """Return the router itself, which nothing changes."""
        return self

    def _choose_one(self, query: RouterInput) -> PromptChoice:
        return _take(self._choose_all([query]))

    async def _achoose_one(self, query: RouterInput) -> PromptChoice:
        return _take(await self._achoose_all([query]))

    def _choose_all(self, inputs: list[RouterInput]) -> list[Exception | PromptChoice]:
        queries, problems = _read_queries(inputs)
        if not queries:
            return [*problems.values()]
        if not self._is_checked:
            self._check(only(self._embeddings.embed_documents([PROBE])))
        choices = iter(self._describe(queries, self._embeddings.embed_documents(queries)))
        return [problems[place] if place in problems else next(choices) for place in range(len(inputs))]

    async def _achoose_all(self, inputs: list[RouterInput]) -> list[Exception | PromptChoice]:
        queries, problems = _read_queries(inputs)
        if not queries:
            return [*problems.values()]
        if not self._is_checked:
            self._check(await embed_probe(self._embeddings))
        vectors = await self._embeddings.aembed_documents(queries)
        choices = iter(await asyncio.to_thread(self._describe, queries, vectors))
        return [problems[place] if place in problems else next(choices) for place in range(len(inputs))]

    def _check(self, probe: Sequence[float]) -> None:
        self.parts.space.check_probe(probe, embeddings=type(self._embeddings).__name__)
        self._is_checked = True

    def _describe(self, queries: Sequence[str], vectors: Sequence[Sequence[float]]) -> list[PromptChoice]:
        routed = self.route(EmbeddedTexts(tuple(queries), normalise_vectors(vectors, queries)))
        best = routed.rewards[:, self._best]
        choices = []
        for row, number in enumerate(routed.chosen.tolist()):
            prompt = self.prompts[number]
            choices.append(
                PromptChoice(
                    prompt=prompt.text,
                    name=prompt.name,
                    reward=round(float(routed.rewards[row, number]), 6),
                    gain=round(float(routed.rewards[row, number] - best[row]), 6),
                    confidence=round(float(routed.confidences[row]), 6),
                    has_abstained=self.has_abstained,
                    reason=self._explain(number),
                )
            )
        return choices

    def _explain(self, number: int) -> str:
        if self.has_abstained:
            return f"The best single prompt: {self.parts.gate.reason}."
        if number == self._best:
            return "The best single prompt: no other is expected to do better on this query."
        return "Expected to do better on this query than the best single prompt."

    def _choose(self, rewards: Floats) -> NDArray[np.intp]:
        policy, gate = self.parts.policy, self.parts.gate
        values = rewards - self._prices()
        if policy == "best":
            return np.asarray(values.argmax(axis=1))
        tried = np.asarray([one.is_tried for one in self.prompts])
        if policy == "fallback":
            return _fall_back(values, tried, rewards=rewards)
        if gate.threshold is None:
            return np.full(len(values), self._best)
        # What was never tried has no evidence, unless nothing else is there to choose from.
        known = tried | np.asarray([one.has_anchors for one in self.prompts])
        allowed = values if not known.any() else np.where(known, values, -np.inf).astype(np.float32)
        return choose(allowed, best=self._best, threshold=gate.threshold)

    def _prices(self) -> Floats:
        return price_prompts(self.prompts, price_per_1k=self.parts.price_per_1k)


def find_best_prompt(parts: RouterParts) -> int:
    """Return the number of the best single prompt: of the tried ones, or the best by its text where none was tried."""
    tried = np.asarray([one.is_tried for one in parts.prompts])
    prices = price_prompts(parts.prompts, price_per_1k=parts.price_per_1k)
    if tried.any():
        means = [one.mean_outcome if one.mean_outcome is not None else -np.inf for one in parts.prompts]
        return int(np.argmax(np.where(tried, np.asarray(means) - prices, -np.inf)))
    shifts = np.asarray([one.shift for one in parts.prompts], dtype=np.float32)
    members = parts.ensemble.predict(FeatureTable(parts.reference, _describe_prompts(parts))) + shifts
    return int(np.argmax(to_probabilities(members.mean(axis=0)).mean(axis=0) - prices))


def _describe_prompts(parts: RouterParts) -> Floats:
    texts = tuple(one.text for one in parts.prompts)
    return parts.space.of_prompts(EmbeddedTexts(texts, parts.prompt_vectors))


def _fall_back(values: Floats, tried: NDArray[np.bool_], *, rewards: Floats) -> NDArray[np.intp]:
    if tried.all() or not tried.any():
        return np.asarray(values.argmax(axis=1))
    first = np.where(tried, values, -np.inf).argmax(axis=1)
    other = np.where(tried, -np.inf, values).argmax(axis=1)
    is_unlikely = rewards[np.arange(len(values)), first] < _HALF
    return np.asarray(np.where(is_unlikely, other, first))


def _be_confident(gains: NDArray[np.floating]) -> Floats:
    """Return how likely it is, as members differ, that a choice is no worse: 1 where it is the same prompt."""
    from scipy.stats import norm  # Slow to load.

    mean, spread = gains.mean(axis=0), gains.std(axis=0, ddof=1 if len(gains) > 1 else 0)
    confidence = norm.cdf(mean / np.maximum(spread, 1e-6))
    return np.where((gains == 0).all(axis=0), 1.0, confidence).astype(np.float32)


def _read_queries(inputs: list[RouterInput]) -> tuple[list[str], dict[int, Exception]]:
    """Return the queries, and what is wrong with each input that has none, by its place."""
    queries: list[str] = []
    problems: dict[int, Exception] = {}
    for place, given in enumerate(inputs):
        query = given.get("query") if isinstance(given, Mapping) else given
        if isinstance(query, str) and query.strip():
            # As in what was learned from.
            queries.append(clean_surrogates(query))
        else:
            shown = shorten(repr(given))
            problems[place] = RewardModelError(
                f"A router is asked with a text, or a mapping with 'query': got {shown}."
            )
    return queries, problems


def _take(found: list[Exception | PromptChoice]) -> PromptChoice:
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
