"""Features of queries and prompts: their embeddings, and a few numbers that cost nothing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray

from drpo_graph.errors import RewardModelError
from drpo_graph.safety.texts import shorten

Floats = NDArray[np.float32]

PROBE: Final = "Seven ferries cross the bay at dawn."
"""Embedded with every model and kept: it tells whether another embedding is in use later."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_CHEAP_SCALE = 0.5
"""Beside embeddings of length 1, whose single numbers are small."""
_MAX_DEVIATIONS = 4.0
_BATCH = 4_096
_SAME = 1e-3
"""Batches are summed in another order: two embeddings of one text differ by less."""


class FeatureTable(NamedTuple):
    """Features of the queries and prompts of a table, one row each."""

    queries: Floats
    """``(num_queries, query_size)``"""
    prompts: Floats
    """``(num_prompts, prompt_size)``"""


class EmbeddedTexts(NamedTuple):
    """Texts with their embeddings, of length 1."""

    texts: tuple[str, ...]
    vectors: Floats


async def embed_texts(texts: Sequence[str], embeddings: Embeddings) -> EmbeddedTexts:
    """Return the embeddings of texts, normalised.

    Raises:
        EmbeddingsError: they cannot be had.
        RewardModelError: they are of different sizes, or no numbers.
    """
    parts: list[Floats] = []
    for start in range(0, len(texts), _BATCH):
        some = list(texts[start : start + _BATCH])
        # Lists of floats take eight times as much memory: no more than a batch of them stands at once.
        parts.append(normalise_vectors(await embeddings.aembed_documents(some), some))
    sizes = {part.shape[1] for part in parts}
    if len(sizes) > 1:
        raise RewardModelError(f"The embeddings have different sizes ({sorted(sizes)}): use one model for all texts.")
    vectors = np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)
    return EmbeddedTexts(tuple(texts), vectors)


def normalise_vectors(rows: Sequence[Sequence[float]], texts: Sequence[str]) -> Floats:
    """Return vectors scaled to length 1, one row each.

    Raises:
        RewardModelError: one is missing, of another size, zero or no number.
    """
    if len(rows) != len(texts):
        raise RewardModelError(f"There are {len(rows)} embeddings for {len(texts)} texts: expected one each.")
    if not len(rows):
        return np.zeros((0, 0), dtype=np.float32)
    sizes = {len(row) if isinstance(row, Sequence | np.ndarray) else 0 for row in rows}
    if len(sizes) > 1:
        raise RewardModelError(f"The embeddings have different sizes ({sorted(sizes)}): use one model for all texts.")
    try:
        # As doubles, the squares of large numbers are finite and those of small ones not zero.
        vectors = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
    except (TypeError, ValueError) as error:
        raise RewardModelError(f"The embeddings are no lists of numbers: {shorten(str(error))}.") from error
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if wrong.size:
        example = shorten(repr(texts[wrong[0]]), 60)
        raise RewardModelError(f"{wrong.size} texts have no usable embedding (zero or no number), such as {example}.")
    unit: Floats = (vectors / lengths).astype(np.float32)
    return unit


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSpace:
    """How texts become features: learned from a table's texts, kept with a reward model."""

    embeddings: str
    """Names the embeddings model."""
    probe: Floats
    """The embedding of ``PROBE``."""
    query_mean: Floats
    query_scale: Floats
    """Of the cheap numbers of the queries that were learned from; likewise for the prompts."""
    prompt_mean: Floats
    prompt_scale: Floats

    @classmethod
    def learn(cls, queries: EmbeddedTexts, prompts: EmbeddedTexts, *, embeddings: str, probe: Sequence[float]) -> Self:
        """Return the space of these texts.

        Args:
            queries: Those that are learned from; the test side has no part in it.
            prompts: Likewise.
            embeddings: Names the model that embedded them.
            probe: Its embedding of ``PROBE``.
        """
        query_mean, query_scale = _centre(measure_texts(queries.texts))
        prompt_mean, prompt_scale = _centre(measure_texts(prompts.texts))
        unit = normalise_vectors([probe], [PROBE])[0]
        return cls(embeddings, unit, query_mean, query_scale, prompt_mean, prompt_scale)

    def of_queries(self, texts: EmbeddedTexts) -> Floats:
        """Return features, ``(num_texts, embedding size + cheap numbers)``.

        Raises:
            RewardModelError: the embeddings have another size than those that were learned with.
        """
        return self._join(texts, self.query_mean, self.query_scale)

    def of_prompts(self, texts: EmbeddedTexts) -> Floats:
        """Return features of prompts, as those of queries."""
        return self._join(texts, self.prompt_mean, self.prompt_scale)

    def check_probe(self, probe: Sequence[float], *, embeddings: str) -> None:
        """Do nothing when an embeddings model is the one that was learned with.

        Raises:
            RewardModelError: it is another one, whatever it is called.
        """
        if len(probe) != len(self.probe):
            raise RewardModelError(
                f"The reward model was learned with embeddings {self.embeddings!r} of {len(self.probe)} numbers; "
                f"{embeddings!r} has {len(probe)}. Use the same model, or train again."
            )
        unit = normalise_vectors([probe], [PROBE])[0]
        if float(np.abs(unit - self.probe).max()) > _SAME:
            raise RewardModelError(
                f"The reward model was learned with embeddings {self.embeddings!r}, which {embeddings!r} is not: it "
                "embeds the same text otherwise. Use the same model, or train again."
            )

    def _join(self, texts: EmbeddedTexts, mean: Floats, scale: Floats) -> Floats:
        if not texts.texts:
            return np.zeros((0, len(self.probe) + NUM_CHEAP), dtype=np.float32)
        size = texts.vectors.shape[1]
        if size != len(self.probe):
            raise RewardModelError(
                f"An embedding has {size} numbers, where {self.embeddings!r} gave {len(self.probe)}."
            )
        deviations = np.clip((measure_texts(texts.texts) - mean) / scale, -_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        return np.hstack([texts.vectors, _CHEAP_SCALE * deviations], dtype=np.float32)


async def embed_probe(embeddings: Embeddings) -> Sequence[float]:
    """Return what an embeddings model makes of ``PROBE``.

    Raises:
        EmbeddingsError: it cannot be had.
        RewardModelError: nothing came.
    """
    return only(await embeddings.aembed_documents([PROBE]))


def only(rows: Sequence[Sequence[float]]) -> Sequence[float]:
    """Return the embedding of one text.

    Raises:
        RewardModelError: there is none, or more than one.
    """
    if len(rows) != 1:
        raise RewardModelError(f"There are {len(rows)} embeddings for 1 text: expected one.")
    return rows[0]


def measure_texts(texts: Sequence[str]) -> Floats:
    """Return cheap numbers about texts: their length, numbers, sentences and signs, on logarithmic scales."""
    return np.asarray([_measure(text) for text in texts], dtype=np.float32).reshape(len(texts), NUM_CHEAP)


def _measure(text: str) -> tuple[float, ...]:
    words, numbers = text.split(), _NUMBER.findall(text)
    counts = (
        len(text),
        len(words),
        len(numbers),
        len(set(numbers)),
        len(_SENTENCE.findall(text)),
        text.count("\n"),
        text.count(","),
        text.count("?"),
        text.count("$"),
        text.count("%"),
        text.count("/"),
        sum(word[0].isupper() for word in words),
    )
    longest_number = max((len(number) for number in numbers), default=0)
    return (*(float(np.log1p(count)) for count in counts), float(longest_number), len(text) / (len(words) + 1))


NUM_CHEAP: Final = len(_measure(""))
"""How many cheap numbers a text has."""


def _centre(numbers: Floats) -> tuple[Floats, Floats]:
    scale = numbers.std(axis=0)
    # A number that is the same everywhere tells nothing: on other texts neither.
    return numbers.mean(axis=0), np.where(scale > 1e-6, scale, np.inf).astype(np.float32)
