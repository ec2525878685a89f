"""The screen that learns from a run: which rewrites it keeps, and when it keeps still."""

from pathlib import Path

import pytest
from langchain_core.embeddings import Embeddings

from drpo_graph.errors import EmbeddingsError, ModelSpecError
from drpo_graph.oirl.screening import MIN_PROMPTS, MIN_TRIALS, RewardScreen, open_screen
from drpo_graph.parts.screens import ScreenRequest, ScreenTrial
from drpo_graph.records import Query
from drpo_graph.settings.settings import Settings
from tests.support.word_embeddings import WordEmbeddings

GOOD, BAD = "Name your sources.", "Answer with a joke."
WORDS = ("apple", "birch", "cedar", "daisy", "elder", "fern", "grape", "hazel")
QUERIES = ("Why is the sky blue?", "What do cats eat?")


def make_trials(num_prompts: int = 8) -> list[ScreenTrial]:
    """Return trials of prompts with a good part or a bad one, on both queries; the second query is harder."""
    return [
        ScreenTrial(f"{(GOOD, BAD)[place % 2]} {WORDS[place]}", query, (4.5, 2.5)[place % 2] - harder)
        for place in range(num_prompts)
        for query, harder in zip(QUERIES, (0.0, 0.5), strict=True)
    ]


def make_request(*rewrites: str, num_kept: int = 2, trials: list[ScreenTrial] | None = None) -> ScreenRequest:
    queries = [Query(id=text, text=text) for text in QUERIES]
    return ScreenRequest(rewrites, num_kept, queries, make_trials() if trials is None else trials, seed=0)


def make_screen(embeddings: Embeddings | None = None) -> RewardScreen:
    return RewardScreen(embeddings or WordEmbeddings(1), "words")


async def test_rewrites_like_what_did_well_are_kept_best_first() -> None:
    rewrites = (f"{BAD} ivy", f"{GOOD} ivy", f"{BAD} juniper", f"{GOOD} {BAD}", f"{GOOD} juniper")
    choice = await make_screen().choose(make_request(*rewrites, num_kept=3))
    assert set(choice.kept[:2]) == {1, 4}
    assert choice.kept[2] == 3
    assert choice.expected is not None
    assert [choice.expected[place] for place in choice.kept] == sorted(choice.expected, reverse=True)[:3]
    assert all(1 <= one <= 5 for one in choice.expected)


async def test_with_little_known_the_first_are_kept_and_nothing_is_embedded() -> None:
    class Refusing(WordEmbeddings):
        async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
            raise AssertionError("asked")

    few_trials = make_trials()[: MIN_TRIALS - 1]
    few_prompts = make_trials(MIN_PROMPTS - 1) * 10
    for trials in ([], few_trials, few_prompts):
        choice = await make_screen(Refusing()).choose(make_request(BAD, GOOD, BAD, trials=trials))
        assert (choice.kept, choice.expected) == ((0, 1), None)


async def test_equal_requests_get_equal_choices() -> None:
    request = make_request(f"{BAD} ivy", f"{GOOD} ivy", "Be brief.")
    assert await make_screen().choose(request) == await make_screen().choose(request)


async def test_repeat_of_another_rewrite_comes_after_all_others() -> None:
    choice = await make_screen().choose(make_request(f"{GOOD} ivy", f"{GOOD} ivy", f"{BAD} ivy"))
    assert choice.kept == (0, 2)


async def test_rewrites_that_are_all_equal_are_kept_in_their_order() -> None:
    choice = await make_screen().choose(make_request(GOOD, GOOD, GOOD, GOOD))
    assert choice.kept == (0, 1)


async def test_embedding_without_direction_stops_the_run_so_that_it_can_be_resumed() -> None:
    class Blank(WordEmbeddings):
        async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[0.0, 0.0] for _ in texts]

    with pytest.raises(EmbeddingsError, match="no usable embedding") as caught:
        await make_screen(Blank()).choose(make_request("a", "b", "c"))
    assert caught.value.is_resumable


def test_what_decides_a_choice_is_in_its_identity() -> None:
    embeddings = WordEmbeddings()
    ours = RewardScreen(embeddings, "words").identity
    assert RewardScreen(WordEmbeddings(), "words").identity == ours
    others = (
        RewardScreen(embeddings, "phrases"),
        RewardScreen(embeddings, "words", min_trials=3),
        RewardScreen(embeddings, "words", min_prompts=3),
    )
    assert ours not in {one.identity for one in others}


def test_screen_is_opened_where_the_settings_want_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert open_screen(Settings()) is None
    assert open_screen(Settings(n_proposed=2)) is None
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    cache = tmp_path / "embeddings.sqlite"
    assert open_screen(Settings(n_proposed=3, embeddings="openai:m", embeddings_cache=cache)) is not None
    assert cache.is_file()


def test_embeddings_that_are_missing_are_told_as_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ModelSpecError, match="OPENAI_API_KEY"):
        open_screen(Settings(n_proposed=3, embeddings="openai:m"))
    monkeypatch.setattr("drpo_graph.retrieval.local.find_spec", lambda name: None)
    with pytest.raises(ModelSpecError, match="pip install"):
        open_screen(Settings(n_proposed=3))
