"""Learn a router from demonstrations."""

import asyncio
from dataclasses import replace
from typing import Final

import numpy as np
from langchain_core.embeddings import Embeddings
from pydantic import Field

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.checks import check_outcomes_differ, choose_model
from drpo_graph.oirl.demonstrations import Demonstrations
from drpo_graph.oirl.ensemble import NUM_FOLDS, CrossFit, cross_fit
from drpo_graph.oirl.features import EmbeddedTexts, FeatureSpace, FeatureTable, Floats, embed_probe, embed_texts
from drpo_graph.oirl.gate import THRESHOLDS, learn_gate, shrink_means
from drpo_graph.oirl.portfolio import choose_portfolio
from drpo_graph.oirl.rewards.base import Trials
from drpo_graph.oirl.rewards.catalogue import DEFAULT_REWARD_MODEL
from drpo_graph.oirl.router import PromptRouter
from drpo_graph.oirl.router_file import FORMAT, open_embeddings
from drpo_graph.oirl.router_parts import KnownPrompt, Policy, Provenance, RouterParts, price_prompts
from drpo_graph.records import Record, digest_json
from drpo_graph.settings.retrieval import DEFAULT_EMBEDDINGS

_MAX_REFERENCE: Final = 256


class TrainingSettings(Record):
    """How a router is learned."""

    reward_model: str = DEFAULT_REWARD_MODEL
    """Its name; see :data:`~drpo_graph.oirl.rewards.catalogue.REWARD_MODELS`."""
    price_per_1k: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Reward that 1,000 tokens are worth: a prompt that makes longer answers must bring so much more."""
    policy: Policy = "safe"
    """How prompts are chosen."""
    portfolio: int | None = Field(default=None, ge=1)
    """So many prompts at most are kept to choose from; all that were tried when absent."""
    seed: int = Field(default=0, ge=0)

    def digest(self) -> str:
        """Return a hash of them, and of what is fixed here."""
        return digest_json({**self.model_dump(), "format": FORMAT, "folds": NUM_FOLDS, "thresholds": list(THRESHOLDS)})


async def train_router(
    demonstrations: Demonstrations,
    *,
    settings: TrainingSettings | None = None,
    embeddings: Embeddings | None = None,
    embeddings_name: str | None = None,
    model: str | None = None,
) -> PromptRouter:
    """Return a router that has learned from trials; those of the test side are left out.

    Args:
        demonstrations: The trials.
        settings: How it is learned.
        embeddings: What embeds queries and prompts; MiniLM on this machine when absent.
        embeddings_name: What the router's file calls them; it can be opened by that name alone where
            :func:`~drpo_graph.retrieval.make_embeddings` knows it.
        model: Whose answers count, where the trials are of several models.

    Raises:
        DemonstrationsError: nothing can be learned from the trials.
        UsageError: there is no such reward model, or an extra is missing.
        EmbeddingsError: the texts cannot be embedded.
    """
    settings = settings or TrainingSettings()
    table = select_training_rows(demonstrations, model=model)
    if settings.price_per_1k and np.isnan(table.tokens).all():
        raise DemonstrationsError(
            "No demonstration tells its tokens: a price would change nothing. Add a column tokens, or leave the price "
            "out."
        )
    name = embeddings_name or (DEFAULT_EMBEDDINGS if embeddings is None else type(embeddings).__name__)
    embedder = embeddings or open_embeddings(name)
    queries = await embed_texts(table.queries, embedder)
    prompts = await embed_texts(table.prompts, embedder)
    probe = await embed_probe(embedder)
    space = FeatureSpace.learn(queries, prompts, embeddings=name, probe=probe)
    parts = await asyncio.to_thread(learn_router, table, queries, prompts, space=space, settings=settings)
    url = getattr(embedder, "base_url", None)
    known = parts.provenance.model_copy(update={"embeddings_base_url": url if isinstance(url, str) else None})
    return PromptRouter(replace(parts, provenance=known), embedder)


def select_training_rows(demonstrations: Demonstrations, *, model: str | None = None) -> Demonstrations:
    """Return the rows of one model that are not on the test side, with the texts that they need alone.

    Raises:
        DemonstrationsError: there are none, or all have the same outcome.
    """
    table = choose_model(demonstrations, model)
    table = table.take(~table.is_in("test"))
    if not len(table):
        raise DemonstrationsError("All demonstrations are on the test side: there is nothing to learn from.")
    check_outcomes_differ(table)
    return table.without_unused()


def learn_router(
    table: Demonstrations,
    queries: EmbeddedTexts,
    prompts: EmbeddedTexts,
    *,
    space: FeatureSpace,
    settings: TrainingSettings,
) -> RouterParts:
    """Return what a router learns from trials whose texts are embedded."""
    features = FeatureTable(space.of_queries(queries), space.of_prompts(prompts))
    trials = Trials(table.query_ids, table.prompt_ids, table.outcomes)
    fitted = cross_fit(settings.reward_model, features, trials, seed=settings.seed)
    return assemble_router(table, fitted, features=features, vectors=prompts.vectors, space=space, settings=settings)


def assemble_router(
    table: Demonstrations,
    fitted: CrossFit,
    *,
    features: FeatureTable,
    vectors: Floats,
    space: FeatureSpace,
    settings: TrainingSettings,
) -> RouterParts:
    """Return the router of a reward model that has learned, with the gate that the evidence supports."""
    known, outcomes, unseen = describe_prompts(table), table.grid().mean, fitted.unseen
    portfolio = None
    if settings.portfolio is not None:
        portfolio = choose_portfolio(unseen, outcomes, size=settings.portfolio, seed=settings.seed)
        kept = list(portfolio.prompts)
        known, outcomes, unseen = tuple(known[one] for one in kept), outcomes[:, kept], unseen[:, kept]
        vectors = vectors[kept]
    gate = learn_gate(unseen, outcomes, prices=price_prompts(known, price_per_1k=settings.price_per_1k))
    chosen = np.random.default_rng(settings.seed).permutation(len(features.queries))[:_MAX_REFERENCE]
    provenance = Provenance(
        reward_model=settings.reward_model,
        embeddings=space.embeddings,
        data_digest=table.digest(),
        settings_digest=settings.digest(),
        model=table.models[0],
        num_rows=len(table),
        num_queries=len(table.queries),
        seed=settings.seed,
    )
    return RouterParts(
        provenance=provenance,
        space=space,
        ensemble=fitted.ensemble,
        gate=gate,
        prompts=known,
        prompt_vectors=vectors,
        reference=features.queries[np.sort(chosen)],
        price_per_1k=settings.price_per_1k,
        policy=settings.policy,
        portfolio=portfolio,
    )


def describe_prompts(table: Demonstrations) -> tuple[KnownPrompt, ...]:
    """Return a table's prompts with what is known of each."""
    size = len(table.prompts)
    counts = np.bincount(table.prompt_ids, minlength=size)
    # The mean over queries, as the gate has it: a query that was tried often counts once.
    means = shrink_means(table.grid().mean)
    counted = ~np.isnan(table.tokens)
    num_counted = np.bincount(table.prompt_ids[counted], minlength=size)
    tokens = np.bincount(table.prompt_ids[counted], weights=table.tokens[counted], minlength=size)
    return tuple(
        KnownPrompt(
            text=text,
            name=table.prompt_names[number],
            num_trials=int(counts[number]),
            mean_outcome=float(means[number]),
            tokens=float(tokens[number] / num_counted[number]) if num_counted[number] else None,
        )
        for number, text in enumerate(table.prompts)
    )
