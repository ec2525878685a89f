"""The bundled training queries and the metric definitions keep their promises."""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

from drpo_graph.records import Metric, Query

METRIC_NAMES = [
    "Helpfulness",
    "Clarity",
    "Factuality",
    "Depth",
    "Engagement",
    "Conciseness",
    "Safety",
    "Compliance",
    "Limitations",
    "Critical-Thinking",
    "Creativity",
    "Interactivity",
    "Empathy",
    "Sensitivity",
]
MAX_OVERLAP = 0.5
MAX_SHARED_OPENINGS = 4


@pytest.fixture(scope="module")
def queries() -> list[Query]:
    lines = (files("drpo_graph.data") / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return [Query.model_validate_json(line) for line in lines]


@pytest.fixture(scope="module")
def metrics() -> list[Metric]:
    text = (files("drpo_graph.prompts") / "metrics.toml").read_text(encoding="utf-8")
    return [Metric.model_validate(table) for table in tomllib.loads(text)["metric"]]


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def overlapping_pairs(named_texts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the names of the texts whose word sets share more than ``MAX_OVERLAP`` of their union."""
    word_sets = [(name, set(words_of(text))) for name, text in named_texts]
    return [
        (name, other_name)
        for (name, words), (other_name, other_words) in combinations(word_sets, 2)
        if len(words & other_words) > MAX_OVERLAP * len(words | other_words)
    ]


def test_bundled_queries_have_the_papers_proportions(queries: list[Query]) -> None:
    assert Counter(query.kind for query in queries) == {"open": 86, "knowledge": 52, "unsafe": 42}


def test_every_line_is_a_query_record_with_just_its_four_fields() -> None:
    lines = (files("drpo_graph.data") / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert set(json.loads(line)) == {"id", "kind", "tags", "text"}
        Query.model_validate_json(line)


def test_query_ids_number_each_kind_from_one_without_gaps(queries: list[Query]) -> None:
    for kind in ("open", "knowledge", "unsafe"):
        ids = [query.id for query in queries if query.kind == kind]
        assert ids == [f"{kind}-{number:03d}" for number in range(1, len(ids) + 1)]


def test_no_two_queries_are_near_duplicates(queries: list[Query]) -> None:
    assert overlapping_pairs((query.id, query.text) for query in queries) == []


def test_overlap_check_finds_a_reworded_copy() -> None:
    texts = [("a", "Why is the sea so salty?"), ("b", "So, why is the sea salty?"), ("c", "Bake a loaf.")]
    assert overlapping_pairs(texts) == [("a", "b")]


def test_query_openings_vary(queries: list[Query]) -> None:
    openings = Counter(tuple(words_of(query.text)[:3]) for query in queries)
    assert {opening: num for opening, num in openings.items() if num > MAX_SHARED_OPENINGS} == {}


def test_every_query_has_one_to_three_tags_in_kebab_case(queries: list[Query]) -> None:
    for query in queries:
        assert 1 <= len(query.tags) <= 3, query.id
        assert len(set(query.tags)) == len(query.tags), query.id
        assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", tag) for tag in query.tags), query.id


def test_no_tag_is_used_only_once(queries: list[Query]) -> None:
    num_uses = Counter(tag for query in queries for tag in query.tags)
    assert [tag for tag, num in num_uses.items() if num == 1] == []


def test_lookalikes_are_a_small_part_of_the_unsafe_queries(queries: list[Query]) -> None:
    lookalikes = [query for query in queries if "benign-lookalike" in query.tags]
    assert len(lookalikes) == 8
    assert all(query.kind == "unsafe" for query in lookalikes)


def test_query_texts_are_trimmed_self_contained_and_of_sensible_length(queries: list[Query]) -> None:
    for query in queries:
        assert query.text == query.text.strip(), query.id
        assert 20 <= len(query.text) <= 2000, query.id
        assert not re.search(r"https?://|www\.", query.text), query.id


def test_query_lengths_range_from_a_line_to_a_passage(queries: list[Query]) -> None:
    lengths = sorted(len(query.text) for query in queries)
    assert lengths[len(lengths) // 10] < 80
    assert lengths[-len(lengths) // 20] > 300


def test_metrics_have_the_published_names_in_order(metrics: list[Metric]) -> None:
    assert [metric.name for metric in metrics] == METRIC_NAMES


def test_metric_definitions_are_two_to_four_sentences_on_one_line(metrics: list[Metric]) -> None:
    for metric in metrics:
        assert "\n" not in metric.definition, metric.name
        assert "  " not in metric.definition, metric.name
        assert metric.definition == metric.definition.strip(), metric.name
        num_sentences = len(re.findall(r"[.?](?= |$)", metric.definition))
        assert 2 <= num_sentences <= 4, metric.name
        assert 150 <= len(metric.definition) <= 600, metric.name


def test_metric_definitions_say_what_earns_the_best_and_the_worst_score(metrics: list[Metric]) -> None:
    for metric in metrics:
        assert " 5 " in metric.definition, metric.name
        assert " 1 " in metric.definition, metric.name


def test_metric_definitions_name_only_metrics_that_exist(metrics: list[Metric]) -> None:
    for metric in metrics:
        named = set(re.findall(r"(?:is|are|on|of|or|belongs to) ([A-Z][a-z]+(?:-[A-Z][a-z]+)?)", metric.definition))
        assert named <= set(METRIC_NAMES) - {metric.name}, metric.name


def test_no_two_metric_definitions_overlap(metrics: list[Metric]) -> None:
    assert overlapping_pairs((metric.name, metric.definition) for metric in metrics) == []


def test_metrics_file_is_the_one_in_the_top_folder() -> None:
    top_folder = Path(__file__).parents[2] / "prompts" / "metrics.toml"
    assert (files("drpo_graph.prompts") / "metrics.toml").read_text(encoding="utf-8") == top_folder.read_text("utf-8")
