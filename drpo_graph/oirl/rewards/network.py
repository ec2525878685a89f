"""A small network on [query features, prompt features]: learned with torch, used with numpy alone."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Self

import numpy as np

from drpo_graph.errors import UsageError
from drpo_graph.oirl.features import FeatureTable, Floats
from drpo_graph.oirl.rewards.base import Arrays, Trials
from drpo_graph.safety.installing import tell_install

if TYPE_CHECKING:
    import torch

_PAIRS_AT_ONCE = 4_096
"""So many fit into a processor's cache."""
_BATCHES = 90


class NetworkSettings(NamedTuple):
    """How the network is built and learned."""

    hidden: tuple[int, int] = (64, 64)
    dropout: float = 0.3
    min_epochs: int = 8
    """At least so often every trial is seen; more often where few trials would make few steps."""
    min_steps: int = 400
    batch_sizes: tuple[int, int] = (32, 512)
    """The smallest and the largest: about 90 batches are made of a table in between."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4


class Layers(NamedTuple):
    """The network's weights; the first layer is split, so that it is applied once per query and once per prompt."""

    query: Floats
    """``(query_size, hidden)``"""
    prompt: Floats
    first_bias: Floats
    second: Floats
    second_bias: Floats
    last: Floats
    """``(hidden,)``"""
    last_bias: Floats


class NetworkReward:
    """Two hidden layers. Its prediction is smooth in the prompt's embedding, which carries over to unseen prompts."""

    name: ClassVar[str] = "network"

    def __init__(self, settings: NetworkSettings | None = None, *, layers: Layers | None = None) -> None:
        self._settings = settings or NetworkSettings()
        self._layers = layers

    def fit(self, features: FeatureTable, trials: Trials, *, seed: int) -> None:
        """Learn by gradient descent on the cross entropy.

        Raises:
            UsageError: torch is missing.
        """
        self._layers = _learn(features, trials, self._settings, seed=seed)

    def predict(self, features: FeatureTable) -> Floats:
        """Return logits, ``(num_queries, num_prompts)``."""
        layers = self._layers
        assert layers is not None, "fit comes first"
        by_query = features.queries @ layers.query + layers.first_bias
        by_prompt = features.prompts @ layers.prompt
        logits = np.empty((len(by_query), len(by_prompt)), dtype=np.float32)
        for part in _parts(len(by_query), max(1, _PAIRS_AT_ONCE // max(1, len(by_prompt)))):
            first = by_query[part, None, :] + by_prompt[None, :, :]
            np.maximum(first, 0, out=first)
            second = first.reshape(-1, first.shape[-1]) @ layers.second + layers.second_bias
            np.maximum(second, 0, out=second)
            logits[part] = (second @ layers.last + layers.last_bias).reshape(first.shape[:2])
        return logits

    def save(self) -> Arrays:
        """Return the weights."""
        assert self._layers is not None, "fit comes first"
        return self._layers._asdict()

    @classmethod
    def load(cls, arrays: Arrays) -> Self:
        """Return the network with these weights."""
        layers = Layers(*(np.asarray(arrays[name], dtype=np.float32) for name in Layers._fields))
        _check_shapes(layers)
        return cls(layers=layers)


def plan_steps(num_trials: int, settings: NetworkSettings) -> tuple[int, int]:
    """Return the size of a batch and the number of epochs for so many trials: a small table needs as many steps."""
    least, most = settings.batch_sizes
    batch_size = min(most, max(least, num_trials // _BATCHES))
    steps_per_epoch = -(-num_trials // batch_size)
    return batch_size, max(settings.min_epochs, -(-settings.min_steps // steps_per_epoch))


def _parts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, start + size)


def _check_shapes(layers: Layers) -> None:
    first, second = layers.second.shape
    expected = ((len(layers.query), first), (len(layers.prompt), first), (first,), (first, second), (second,))
    if tuple(one.shape for one in layers[:5]) != expected or layers.last.shape != (second,):
        raise ValueError("its layers do not fit each other")


_TORCH_MISSING: Final = (
    f"The network is learned with torch, which is missing. Run: pip install torch, then {tell_install('oirl')}; "
    "or choose another reward model."
)


def _learn(features: FeatureTable, trials: Trials, settings: NetworkSettings, *, seed: int) -> Layers:
    try:
        import torch  # Slow to load, and wanted here alone.
    except ImportError as error:
        raise UsageError(_TORCH_MISSING) from error

    num_threads = torch.get_num_threads()
    # So small a network gains nothing from more, and loses much where others want the processors too.
    torch.set_num_threads(1)
    try:
        return _descend(features, trials, settings, seed=seed)
    finally:
        torch.set_num_threads(num_threads)


def _descend(features: FeatureTable, trials: Trials, settings: NetworkSettings, *, seed: int) -> Layers:
    import torch

    generator = torch.Generator().manual_seed(seed)
    query_size, prompt_size = features.queries.shape[1], features.prompts.shape[1]
    weights = _initialise(query_size + prompt_size, settings.hidden, generator)
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    queries, prompts = torch.from_numpy(features.queries), torch.from_numpy(features.prompts)
    outcomes = torch.from_numpy(trials.outcomes)
    query_ids, prompt_ids = torch.from_numpy(trials.query_ids), torch.from_numpy(trials.prompt_ids)
    batch_size, epochs = plan_steps(len(outcomes), settings)
    for _ in range(epochs):
        for rows in torch.randperm(len(outcomes), generator=generator).split(batch_size):
            pairs = torch.cat([queries[query_ids[rows]], prompts[prompt_ids[rows]]], dim=1)
            logits = _forward(pairs, weights, dropout=settings.dropout, generator=generator)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, outcomes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    first, first_bias, second, second_bias, last, last_bias = (one.detach().numpy() for one in weights)
    return Layers(first[:query_size], first[query_size:], first_bias, second, second_bias, last[:, 0], last_bias)


def _initialise(size: int, hidden: tuple[int, int], generator: "torch.Generator") -> "list[torch.Tensor]":
    """Return weights and biases of three layers, drawn as torch's own layers draw them."""
    import torch

    weights: list[torch.Tensor] = []
    sizes = (size, *hidden, 1)
    for inputs, outputs in itertools.pairwise(sizes):
        bound = 1 / np.sqrt(inputs)
        for shape in ((inputs, outputs), (outputs,)):
            drawn = (torch.rand(shape, generator=generator) * 2 - 1) * bound
            weights.append(drawn.requires_grad_())
    return weights


def _forward(
    pairs: "torch.Tensor", weights: "list[torch.Tensor]", *, dropout: float, generator: "torch.Generator"
) -> "torch.Tensor":
    import torch

    hidden = pairs
    for weight, bias in zip(weights[:4:2], weights[1:4:2], strict=True):
        hidden = torch.relu(hidden @ weight + bias)
        kept = torch.rand(hidden.shape, generator=generator) >= dropout
        hidden = hidden * kept / (1 - dropout)
    return (hidden @ weights[4] + weights[5]).squeeze(1)
