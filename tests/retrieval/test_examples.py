"""ICL examples: the published form, and our own."""

import json
from pathlib import Path

import pytest

from drpo_graph.data.datasets import load_bundled_queries
from drpo_graph.errors import DatasetError
from drpo_graph.records import ICLExample
from drpo_graph.retrieval import bundled_icl_examples, load_icl_examples
from drpo_graph.retrieval.examples import digest_examples
from drpo_graph.retrieval.retriever import read_icl_examples
from drpo_graph.settings.retrieval import RetrievalSettings

PUBLISHED = Path(__file__).resolve().parents[3] / "shared/data/drpo/ICL_examples.json"


def write(folder: Path, content: object) -> Path:
    path = folder / "examples.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published data is not beside the repository")
def test_published_file_has_sixteen_examples_without_marks() -> None:
    examples = load_icl_examples(PUBLISHED)
    assert len(examples) == 16
    assert not any(mark in one.response for one in examples for mark in ("<START>", "<END>"))
    assert all(one.query == one.query.strip() or one.query for one in examples)


def test_examples_keep_the_order_of_the_file_and_lose_the_marks(tmp_path: Path) -> None:
    path = write(tmp_path, {"Why?": "<START>\nBecause.\n<END>", "And?": " So. "})
    assert load_icl_examples(path) == (
        ICLExample(query="Why?", response="Because."),
        ICLExample(query="And?", response="So."),
    )


def test_mark_within_a_response_stays(tmp_path: Path) -> None:
    path = write(tmp_path, {"Why?": "Put <START> and <END> around it."})
    assert load_icl_examples(path)[0].response == "Put <START> and <END> around it."


def test_bundled_examples_are_many_and_none_is_a_training_query() -> None:
    examples = bundled_icl_examples()
    assert len(examples) >= 20
    assert not {one.query for one in examples} & {query.text for query in load_bundled_queries()}
    assert read_icl_examples(RetrievalSettings()) == examples


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ([{"Why?": "Because."}], "record 1: no text: expected query or"),
        (["Why?"], "record 1: no response: expected response or output"),
        (3, "expected an object of responses by query"),
        ({}, "there is none"),
        ({"Why?": 3}, "entry 1"),
        ({"Why?": "<START><END>"}, "entry 1"),
        ({" ": "Because."}, "entry 1"),
        ('{"Why?": "\\ud800"}', "entry 1: half of a character"),
        ({str(number): "" for number in range(50)}, "and 30 more"),
        ('{"Why?": "Because.", "Why?": "So."}', "entry 2: the same query"),
    ],
)
def test_file_that_cannot_be_used_is_named_with_what_is_wrong(tmp_path: Path, content: object, told: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DatasetError) as caught:
        load_icl_examples(path)
    assert told in str(caught.value)
    assert "examples.json" in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="ICL examples"):
        load_icl_examples(tmp_path / name)


def test_file_that_is_no_text_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="not UTF-8"):
        load_icl_examples(tmp_path / "binary")


def test_digest_tells_examples_apart() -> None:
    one, other = ICLExample(query="a", response="bc"), ICLExample(query="ab", response="c")
    assert digest_examples([one]) != digest_examples([other])
    assert digest_examples([one, other]) != digest_examples([other, one])
