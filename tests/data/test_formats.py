"""In which forms datasets are read: by what they hold, and never as lines of text what is none."""

import gzip
import json
from pathlib import Path

import pytest

from drpo_graph.data.datasets import load_queries
from drpo_graph.errors import DatasetError

LINES = '{"query": "a"}\n{"query": "b"}\n'
TABLE = 'id\tquery\n1\ta\n2\t"b"\n'


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, LINES) for name in ("s.jsonl", "s.ndjson", "s.JSONLINES", "s.json", "s.txt", "s.md", "s", "s.dat")),
        *((name, '[{"query": "a"},\n "b"]') for name in ("s.json", "s.jsonl", "s.ndjson", "s.txt", "s.log")),
        *((name, '{"queries": ["a", "b"]}') for name in ("s.json", "s.txt", "s")),
        *((name, '{\n  "data": [\n    "a",\n    "b"\n  ]\n}\n') for name in ("s.json", "s.txt")),
        *((name, TABLE) for name in ("s.tsv", "s.tab", "s.csv", "s.txt")),
        *((name, TABLE.replace("\t", ",")) for name in ("s.csv", "s.tsv", "s.txt")),
        ("s.csv", TABLE.replace("\t", ";")),
    ],
)
def test_content_says_how_a_file_is_read(tmp_path: Path, name: str, content: str) -> None:
    assert [query.text for query in load_queries(write(tmp_path, name, content))] == ["a", "b"]


def test_tabs_and_commas_stay_in_cells_of_the_other_table(tmp_path: Path) -> None:
    (query,) = load_queries(write(tmp_path, "s.tsv", 'query\tkind\n"a\tb, c"\tk\n'))
    assert (query.text, query.kind) == ("a\tb, c", "k")


def test_parquet_is_read_by_name_and_by_content(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"query": "a", "kind": None, "messages": None},
        {"query": None, "kind": "k", "messages": [{"role": "user", "content": "b"}]},
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "s.parquet")
    (tmp_path / "other.data").write_bytes((tmp_path / "s.parquet").read_bytes())
    for name in ("s.parquet", "other.data"):
        assert [(query.text, query.kind) for query in load_queries(tmp_path / name)] == [("a", ""), ("b", "k")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.txt", '[{"query": "a"},\n{"query": "b"},]\n', ":2: not JSON"),
        ("s.txt", '{"query": "a"\n{"query": "b"}\n', ":1: not JSON"),
        ("s.txt", '{\n"query": "a",\n', "not JSON"),
        ("s.yaml", "- a\n- b\n", ".yaml says nothing of how its queries are written"),
        ("s.xml", "<a/>", ".xml says nothing"),
        ("s.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), "compressed (gzip)"),
        ("s.txt", gzip.compress(LINES.encode(), mtime=0), "compressed (gzip)"),
        ("s.xlsx", b"PK\x03\x04...", "spreadsheet"),
        ("s.arrow", b"ARROW1..", "an Arrow file"),
        ("s.tsv", "id\tname\n1\ta\n", "no text column"),
    ],
)
def test_what_is_of_another_form_is_refused(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        load_queries(write(tmp_path, name, content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("s.parquet", "s.txt"):
        with pytest.raises(DatasetError, match="cannot be read as Parquet"):
            load_queries(write(tmp_path, name, b"PAR1 and no more"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("s.jsonl", '{"query": "é"}'), ("s.json", '["é"]'), ("s.txt", '{"query": "é"}'), ("s.tsv", "query\tid\né\t1\n")],
)
def test_byte_order_mark_says_the_encoding(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    assert [one.text for one in load_queries(write(tmp_path, name, content.encode(encoding)))] == ["é"]


def test_mark_of_an_encoding_that_the_rest_is_not_in_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not utf-16-le, which its byte-order mark says it is"):
        load_queries(write(tmp_path, "s.txt", b"\xff\xfe\x00\xd8a"))


def test_rows_without_a_text_are_told_with_their_place(tmp_path: Path) -> None:
    rows = [{"query": "a", "kind": float("nan"), "id": float("nan")}, {"query": float("nan")}, {"query": "\ud83d"}]
    path = write(tmp_path, "s.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetError) as caught:
        load_queries(path)
    assert caught.value.problems == (
        f"{path}:2: no text: query is NaN",
        f"{path}:3: query has half of a surrogate pair, which UTF-8 cannot hold",
    )
