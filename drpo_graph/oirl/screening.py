"""Pre-screening: a reward model that learns from a search as it goes drops rewrites before they cost calls.

Where the optimizer writes more rewrites than are run (the setting ``n_proposed``), this is what chooses among them. It
learns from the run's own critiques alone, as Prompt-OIRL learns from logs: from embeddings of query and prompt, and
without a model call.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray

from drpo_graph.errors import EmbeddingsError, RewardModelError
from drpo_graph.oirl.features import FeatureTable, embed_texts
from drpo_graph.oirl.rewards.base import Trials
from drpo_graph.oirl.rewards.kernel import MAX_TRIALS, KernelReward
from drpo_graph.parts.checkers import to_outcome
from drpo_graph.parts.screens import ScreenChoice, ScreenRequest, ScreenTrial
from drpo_graph.records import MAX_SCORE, MIN_SCORE
from drpo_graph.retrieval import CachedEmbeddings, make_embeddings
from drpo_graph.retrieval.local import MiniLMEmbeddings
from drpo_graph.settings.settings import Settings

MIN_TRIALS: Final = 12
MIN_PROMPTS: Final = 5
"""With less than these, the first rewrites are run: chance would choose."""
_DIGITS: Final = 6
"""Two machines may differ in the last ones."""


class RewardScreen:
    """Keeps the rewrites of the highest expected reward; implements ``RewriteScreen``.

    A text that repeats another rewrite comes after all others.

    Args:
        embeddings: Any of LangChain's; :class:`~drpo_graph.retrieval.CachedEmbeddings` keeps what they return.
        name: Names their model, as a part of the run's fingerprint.
        min_trials: With fewer scored responses than these nothing is learned.
        min_prompts: Likewise with fewer prompts.
    """

    STORED_NAME: ClassVar[str] = "drpo_graph.oirl.screening.RewardScreen"

    def __init__(
        self, embeddings: Embeddings, name: str, *, min_trials: int = MIN_TRIALS, min_prompts: int = MIN_PROMPTS
    ) -> None:
        self._embeddings = embeddings
        self._name = name
        self._min_trials, self._min_prompts = max(1, min_trials), min_prompts

    @property
    def identity(self) -> str:
        """What decides its choices, as a part of the run's fingerprint."""
        return json.dumps(["kernel", self._name, self._min_trials, self._min_prompts])

    async def choose(self, request: ScreenRequest) -> ScreenChoice:
        """Return the rewrites of the highest expected reward, or the first ones where little is known.

        Raises:
            EmbeddingsError: the texts cannot be embedded; mended, the run can be resumed.
        """
        trials = request.trials
        if len(trials) < self._min_trials or len({one.prompt for one in trials}) < self._min_prompts:
            return ScreenChoice(tuple(range(min(request.num_kept, len(request.rewrites)))))
        rewards = await self._expect(request, trials[-MAX_TRIALS:])
        repeats = [one in request.rewrites[:place] for place, one in enumerate(request.rewrites)]
        order = sorted(range(len(rewards)), key=lambda place: (repeats[place], -rewards[place], place))
        return ScreenChoice(tuple(order[: request.num_kept]), rewards)

    async def _expect(self, request: ScreenRequest, trials: Sequence[ScreenTrial]) -> tuple[float, ...]:
        """Return the mean reward that is expected of each rewrite on the queries."""
        queries = list(dict.fromkeys([*(one.query for one in trials), *(one.text for one in request.queries)]))
        prompts = list(dict.fromkeys([*(one.prompt for one in trials), *request.rewrites]))
        try:
            by_query = (await embed_texts(queries, self._embeddings)).vectors
            by_prompt = (await embed_texts(prompts, self._embeddings)).vectors
        except RewardModelError as error:
            # A run that is under way is not refused: its embeddings are mended, and it goes on.
            raise EmbeddingsError(f"{error} Then resume.") from error
        query_ids, prompt_ids = ({text: place for place, text in enumerate(texts)} for texts in (queries, prompts))
        known = Trials(
            np.asarray([query_ids[one.query] for one in trials], np.int32),
            np.asarray([prompt_ids[one.prompt] for one in trials], np.int32),
            np.asarray([to_outcome(one.reward) for one in trials], np.float32),
        )
        asked = [query_ids[one.text] for one in request.queries]
        judged = [prompt_ids[one] for one in request.rewrites]
        expected = await asyncio.to_thread(_learn_and_predict, FeatureTable(by_query, by_prompt), known, asked, judged)
        span = MAX_SCORE - MIN_SCORE
        return tuple(round(MIN_SCORE + span * float(one), _DIGITS) for one in expected.mean(axis=0))


def open_screen(settings: Settings) -> RewardScreen | None:
    """Return what chooses among a run's rewrites, or ``None`` when no more are written than are run.

    Texts are embedded as the settings' ``embeddings`` say. Nothing is embedded yet.

    Raises:
        UsageError: the embeddings cannot be used here.
        EmbeddingsError: their cache cannot.
    """
    if not settings.is_screened:
        return None
    embeddings = make_embeddings(
        settings.embeddings, base_url=settings.embeddings_base_url, api_key_env=settings.embeddings_api_key_env
    )
    if isinstance(embeddings, MiniLMEmbeddings):
        embeddings.check_installed()
    cached = CachedEmbeddings(embeddings, model=settings.embeddings, file=settings.embeddings_cache)
    return RewardScreen(cached, settings.embeddings)


def _learn_and_predict(
    features: FeatureTable, trials: Trials, queries: list[int], prompts: list[int]
) -> NDArray[np.float64]:
    model = KernelReward()
    model.fit(features, trials)
    return model.predict(FeatureTable(features.queries[queries], features.prompts[prompts]))
