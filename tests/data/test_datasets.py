"""Datasets: what loads, what is reported, and which order a seed gives."""

import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drpo_graph.data.datasets import MAX_PRINTED_PROBLEMS, load_bundled_queries, load_queries
from drpo_graph.data.order import dataset_hash, order_queries
from drpo_graph.errors import DatasetError
from drpo_graph.records import Query

REPOSITORY = Path(__file__).parents[2]
PUBLISHED_FOLDER = Path(__file__).parents[3] / "shared/data/drpo"
needs_published_data = pytest.mark.skipif(
    not PUBLISHED_FOLDER.is_dir(), reason=f"the published training queries are not at {PUBLISHED_FOLDER}"
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def problems_of(source: str | Path) -> tuple[str, ...]:
    with pytest.raises(DatasetError) as caught:
        load_queries(source)
    return caught.value.problems


def texts_of(queries: Sequence[Query]) -> list[str]:
    return [query.text for query in queries]


def load_text(folder: Path, name: str, content: str | bytes) -> list[str]:
    return texts_of(load_queries(write(folder, name, content)))


@needs_published_data
def test_published_folder_gives_its_three_kinds_with_their_counts() -> None:
    queries = load_queries(PUBLISHED_FOLDER)
    assert Counter(query.kind for query in queries) == {"open": 86, "knowledge": 52, "unsafe": 42}
    assert [queries[index].id for index in (0, 86, 138, 179)] == [
        "open-001",
        "knowledge-001",
        "unsafe-001",
        "unsafe-042",
    ]
    assert len({query.id for query in queries}) == 180


@needs_published_data
def test_published_texts_are_kept_to_the_byte() -> None:
    records = json.loads((PUBLISHED_FOLDER / "lima_subsample_train.json").read_text(encoding="utf-8"))
    queries = [query for query in load_queries(PUBLISHED_FOLDER) if query.kind == "knowledge"]
    assert texts_of(queries) == [record["query"] for record in records]


def test_folder_with_one_published_file_is_enough(tmp_path: Path) -> None:
    write(tmp_path, "mal_train.txt", "one\n\ntwo")
    assert load_queries(str(tmp_path)) == (
        Query(id="unsafe-001", text="one", kind="unsafe"),
        Query(id="unsafe-002", text="two", kind="unsafe"),
    )


def test_folder_without_published_files_names_all_three(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"alpaca_train\.json, lima_subsample_train\.json, mal_train\.txt"):
        load_queries(tmp_path)


def test_published_kind_replaces_a_records_own_category(tmp_path: Path) -> None:
    write(tmp_path, "lima_subsample_train.json", '[{"query": "why?", "category": "multi_turn"}]')
    assert load_queries(tmp_path)[0].kind == "knowledge"


def test_full_alpaca_record_gives_its_instruction_and_input_only(tmp_path: Path) -> None:
    record = {"instruction": "Sort.", "input": "b, a", "output": "a, b", "text": "Below is an instruction ... a, b"}
    write(tmp_path, "alpaca_train.json", json.dumps([record, {"instruction": "Go.", "input": " "}]))
    assert texts_of(load_queries(tmp_path)) == ["Sort.\n\nb, a", "Go."]


def test_problems_of_all_files_of_a_folder_are_reported_together(tmp_path: Path) -> None:
    write(tmp_path, "alpaca_train.json", '[{"query": "the wrong field"}]')
    write(tmp_path, "mal_train.txt", b"fine\n\xff\n")
    assert [problem.split(": ")[0] for problem in problems_of(tmp_path)] == [
        f"{tmp_path}/alpaca_train.json",
        f"{tmp_path}/mal_train.txt:2",
    ]


def test_jsonl_takes_objects_and_strings_and_skips_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "set.jsonl", '{"query": "a", "id": "x", "kind": "k", "tags": ["t", "u"], "zz": 1}\n\n"b"\n')
    assert load_queries(path) == (
        Query(id="x", text="a", kind="k", tags=("t", "u")),
        Query(id="set-002", text="b"),
    )


@pytest.mark.parametrize(
    "content",
    ['["a", {"text": "b"}]', '{"queries": ["a", {"text": "b"}]}', '{"n": 2, "data": ["a", "b"]}', '\n[\n"a"\n,\n"b"]'],
)
def test_json_takes_a_list_or_an_object_with_one(tmp_path: Path, content: str) -> None:
    queries = load_queries(write(tmp_path, "set.json", content))
    assert [(query.id, query.text) for query in queries] == [("set-001", "a"), ("set-002", "b")]


def test_csv_takes_quoted_commas_newlines_kinds_and_tags(tmp_path: Path) -> None:
    path = write(tmp_path, "set.CSV", 'id,question,category,tags\r\na,"one,\r\ntwo ""x""",k,"t, u"\r\n\r\n,three,,\r\n')
    assert load_queries(path) == (
        Query(id="a", text='one,\ntwo "x"', kind="k", tags=("t", "u")),
        Query(id="set-002", text="three"),
    )


def test_csv_takes_spaces_after_commas(tmp_path: Path) -> None:
    path = write(tmp_path, "set.csv", 'kind, prompt\nk, "a, b"\n')
    assert load_queries(path) == (Query(id="set-001", text="a, b", kind="k"),)


@pytest.mark.parametrize("name", ["set.txt", "set.md", "set"])
def test_any_other_suffix_is_one_query_per_line(tmp_path: Path, name: str) -> None:
    assert load_text(tmp_path, name, '  a \r\n\r\n{"b"}\u2028still b\n') == ["a", '{"b"}\u2028still b']


@pytest.mark.parametrize(
    ("name", "content"),
    [("s.jsonl", '{"query": "é"}'), ("s.json", '["é"]'), ("s.csv", "query\né\n"), ("s.txt", "é\n")],
)
def test_byte_order_mark_is_accepted(tmp_path: Path, name: str, content: str) -> None:
    assert load_text(tmp_path, name, b"\xef\xbb\xbf" + content.encode("utf-8")) == ["é"]


def test_first_present_text_field_counts(tmp_path: Path) -> None:
    fields = ["query", "text", "instruction", "prompt", "question", "input"]
    records = [{name: name for name in reversed(fields[start:])} for start in range(len(fields))]
    expected = ["query", "text", "instruction\n\ninput", "prompt", "question", "input"]
    assert load_text(tmp_path, "s.json", json.dumps(records)) == expected


def test_null_counts_as_absent(tmp_path: Path) -> None:
    record = {"query": None, "text": "a", "id": None, "kind": None, "category": "k", "tags": None}
    path = write(tmp_path, "s.jsonl", json.dumps(record))
    assert load_queries(path) == (Query(id="s-001", text="a", kind="k"),)


def test_whole_number_ids_become_strings(tmp_path: Path) -> None:
    assert load_queries(write(tmp_path, "s.jsonl", '{"id": 7, "query": "a"}'))[0].id == "7"


def test_default_id_counts_records_not_lines(tmp_path: Path) -> None:
    queries = load_queries(write(tmp_path, "s.txt", "\n\n" + "a\n\n" * 1000))
    assert [queries[0].id, queries[-1].id] == ["s-001", "s-1000"]


def test_json_text_keeps_its_white_space(tmp_path: Path) -> None:
    assert load_text(tmp_path, "s.jsonl", '{"query": " a \\n"}') == [" a \n"]


@pytest.mark.parametrize(
    "content", ['\n {"query": "a"}\n{"text": "b"}\n', ' [{"query": "a"}, "b"]', "\n a\n\nb", "\ufeffa\nb\n"]
)
def test_stdin_is_read_as_its_first_line_says(content: str) -> None:
    queries = load_queries("-", stdin=io.StringIO(content))
    assert [(query.id, query.text) for query in queries] == [("stdin-001", "a"), ("stdin-002", "b")]


def test_stdin_bytes_that_are_not_utf8_are_reported_whatever_its_encoding() -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"a\n\xff\n"), encoding="latin-1")
    with pytest.raises(DatasetError, match=r"stdin:2: not UTF-8 \(byte 0xff"):
        load_queries("-", stdin=stdin)


def test_stdin_error_says_how_it_was_read() -> None:
    with pytest.raises(DatasetError, match=r"read as json by its first line"):
        load_queries("-", stdin=io.StringIO('["Why?",'))


def test_brackets_that_open_no_json_are_text() -> None:
    assert texts_of(load_queries("-", stdin=io.StringIO("[INST] Why? [/INST]"))) == ["[INST] Why? [/INST]"]


def test_closed_stdin_is_a_dataset_error() -> None:
    stdin = io.StringIO("a")
    stdin.close()
    with pytest.raises(DatasetError, match="Standard input cannot be read"):
        load_queries("-", stdin=stdin)


MALFORMED_LINES: list[tuple[bytes, str]] = [
    (b'{"query": "cut off', "not JSON (Unterminated string"),
    (b"17", "expected an object or a string, got int"),
    (b'{"query": ["list"]}', "query must be a string, got list"),
    (b'{"query": "  "}', "query is blank"),
    (b'{"quary": "a"}', "no text: expected query or text or instruction or prompt or question or input, got 'quary'"),
    (b'{"query": "\xe9"}', "not UTF-8 (byte 0xe9 at byte 12)"),
    (b'{"query": "nul \\u0000"}', "query has a NUL character"),
    (b'{"query": "raw nul \0"}', "has a NUL character"),
    (b'{"query": "half \\ud83d"}', "query has half of a surrogate pair"),
    (b'{"query": "b", "id": "", "kind": 3}', "id is blank; kind must be a string, got int"),
    (
        b'{"query": "b", "id": true, "category": false}',
        "id must be a string, got bool; kind must be a string, got bool",
    ),
    (b'{"query": "b", "tags": "t"}', "tags must be a list of strings, got str"),
    (b'{"query": "b", "tags": ["t", 1]}', "a tag must be a string, got int"),
    (b"[" * 100_000, "not JSON that can be read"),
    (b"1" * 5000, "not JSON that can be read"),
]


def test_malformed_lines_are_reported_with_file_and_line(tmp_path: Path) -> None:
    lines = [b'"fine"', b"", *(line for line, _ in MALFORMED_LINES), b'"fine"']
    path = write(tmp_path, "bad.jsonl", b"\n".join(lines))
    problems = problems_of(path)
    assert len(problems) == len(MALFORMED_LINES)
    for number, (problem, (_, expected)) in enumerate(zip(problems, MALFORMED_LINES, strict=True), start=3):
        assert problem.startswith(f"{path}:{number}: {expected}")


def test_an_id_given_twice_is_reported_with_its_first_place(tmp_path: Path) -> None:
    path = write(
        tmp_path, "bad.jsonl", '{"query": "a", "id": "x"}\n{"query": "b", "id": "x"}\n{"query": "", "id": "x"}\n'
    )
    assert problems_of(path) == (
        f"{path}:2: id 'x' is taken by {path}:1",
        f"{path}:3: query is blank; id 'x' is taken by {path}:1",
    )


def test_error_message_shows_the_problems_it_carries(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.jsonl", "1\n2\n")
    with pytest.raises(DatasetError) as caught:
        load_queries(path)
    headline, *shown = str(caught.value).splitlines()
    assert headline == f"{path}: 2 malformed record(s); correct or remove them."
    assert tuple(shown) == caught.value.problems


def test_message_is_capped_but_all_problems_are_carried(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.jsonl", "1\n" * (MAX_PRINTED_PROBLEMS + 5))
    with pytest.raises(DatasetError) as caught:
        load_queries(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + MAX_PRINTED_PROBLEMS + 1
    assert lines[-1] == "... and 5 more"
    assert len(caught.value.problems) == MAX_PRINTED_PROBLEMS + 5


def test_malformed_json_records_are_reported_by_their_number(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.json", '["a", 3, {"text": ""},\n null, "b"]')
    assert problems_of(path) == (
        f"{path}: record 2: expected an object or a string, got int",
        f"{path}: record 3: text is blank",
        f"{path}: record 4: expected an object or a string, got null",
    )


@pytest.mark.parametrize(
    ("content", "place"),
    [("[1,\n2,\n", ":3: not JSON"), ("3", ":1: expected a list"), ('{"rows": []}', ":1: expected a list"),
     ('{"queries": 3}', ":1: expected a list"), (b'[\n"\xff"]', ":2: not UTF-8")],
)  # fmt: skip
def test_json_file_that_is_no_list_is_reported_with_its_line(tmp_path: Path, content: str | bytes, place: str) -> None:
    path = write(tmp_path, "bad.json", content)
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}{place}")


def test_malformed_csv_records_are_reported_with_their_first_line(tmp_path: Path) -> None:
    rows = ["id,query", 'a,"two', 'lines"', 'b,"cut" off', "c,an unquoted, comma", "d", "a,again", "e,", 'f,"open', "g"]
    path = write(tmp_path, "bad.csv", "\n".join(rows))
    problems = problems_of(path)
    expected = [
        ":4: not CSV",
        ":5: expected 2 cells, got 3",
        ":6: expected 2 cells, got 1",
        f":7: id 'a' is taken by {path}:2",
        ":8: query is blank",
        ":9: not CSV",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(f"{path}{start}")


def test_csv_without_a_text_column_says_which_columns_it_has(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.csv", "Why is the sky blue?\nHow?\n")
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}:1: no text column: expected one of query, text,")
    assert problem.endswith("got 'Why is the sky blue?'")


def test_default_id_never_hides_an_explicit_one(tmp_path: Path) -> None:
    path = write(tmp_path, "s.jsonl", '{"query": "a", "id": "s-002"}\n"b"\n')
    assert problems_of(path) == (f"{path}:2: id 's-002' is taken by {path}:1",)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.csv", "empty.txt"])
@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_empty_dataset_is_said_to_be_empty(tmp_path: Path, name: str, content: str) -> None:
    if name == "empty.csv" and content == "\n \n":
        content = "query\n\n"
    path = write(tmp_path, name, content)
    with pytest.raises(DatasetError, match="is empty: expected at least one query"):
        load_queries(path)


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.jsonl cannot be read \(No such file or directory\): give a file"):
        load_queries(tmp_path / "none.jsonl")


def test_unreadable_paths_are_dataset_errors(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    below_a_file = write(tmp_path, "file.txt", "a") / "q.txt"
    (tmp_path / "folder/alpaca_train.json").mkdir(parents=True)
    for path in (tmp_path / "loop.txt", below_a_file, tmp_path / "folder", tmp_path / ("n" * 300), "nul\0.txt"):
        with pytest.raises(DatasetError, match="cannot be read"):
            load_queries(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse file names that are not UTF-8")
def test_file_name_that_is_not_utf8_gives_ids_that_can_be_stored(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    path.write_text("a", encoding="utf-8")
    assert load_queries(path)[0].id == "?-001"


def test_bundled_queries_have_unique_ids_and_texts_and_a_kind() -> None:
    queries = load_bundled_queries()
    assert queries
    assert len({query.id for query in queries}) == len({query.text for query in queries}) == len(queries)
    assert all(query.kind for query in queries)


query_kinds = st.lists(st.sampled_from(["open", "knowledge", "unsafe", ""]), min_size=1, max_size=40)


def make_queries(kinds: Sequence[str]) -> tuple[Query, ...]:
    return tuple(Query(id=f"q-{number}", text=f"text {number}", kind=kind) for number, kind in enumerate(kinds))


PUBLISHED_KINDS = ["open"] * 86 + ["knowledge"] * 52 + ["unsafe"] * 42


@given(kinds=query_kinds, seed=st.integers())
def test_order_without_a_number_is_a_permutation(kinds: list[str], seed: int) -> None:
    queries = make_queries(kinds)
    ordered = order_queries(queries, seed=seed)
    assert sorted(ordered, key=lambda query: query.id) == sorted(queries, key=lambda query: query.id)


@given(kinds=query_kinds, seed=st.integers(), data=st.data())
def test_order_with_a_number_is_a_subset_in_which_every_kind_keeps_its_share(
    kinds: list[str], seed: int, data: st.DataObject
) -> None:
    num_queries = data.draw(st.integers(1, len(kinds)))
    ordered = order_queries(make_queries(kinds), seed=seed, num_queries=num_queries)
    assert len(ordered) == len({query.id for query in ordered}) == num_queries
    assert set(ordered) <= set(make_queries(kinds))
    for kind, count in Counter(kinds).items():
        num_of_kind = sum(query.kind == kind for query in ordered)
        assert 0 <= num_of_kind - num_queries * count // len(kinds) <= 1


@given(kinds=query_kinds, seed=st.integers())
def test_equal_seeds_give_equal_orders_and_leave_the_global_generator_alone(kinds: list[str], seed: int) -> None:
    queries = make_queries(kinds)
    generator_state = random.getstate()
    first = order_queries(queries, seed=seed)
    assert random.getstate() == generator_state
    random.random()
    assert order_queries(queries, seed=seed) == first


def test_remainder_goes_to_the_kinds_in_turn() -> None:
    ordered = order_queries(make_queries(PUBLISHED_KINDS), seed=0, num_queries=25)
    assert Counter(query.kind for query in ordered) == {"open": 12, "knowledge": 8, "unsafe": 5}


def test_exact_shares_are_not_lost_to_rounding() -> None:
    ordered = order_queries(make_queries(PUBLISHED_KINDS), seed=0, num_queries=90)
    assert Counter(query.kind for query in ordered) == {"open": 43, "knowledge": 26, "unsafe": 21}


def test_other_seeds_give_other_queries() -> None:
    queries = make_queries(PUBLISHED_KINDS)
    orders = {order_queries(queries, seed=seed, num_queries=10) for seed in range(20)}
    assert len(orders) == 20


def test_adding_a_kind_does_not_change_which_queries_of_another_kind_are_drawn() -> None:
    few = order_queries(make_queries(["a"] * 10), seed=3, num_queries=5)
    more = order_queries(make_queries(["a"] * 10 + ["b"] * 10), seed=3, num_queries=10)
    assert set(few) == {query for query in more if query.kind == "a"}


def test_order_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from drpo_graph.data.order import dataset_hash, order_queries\n"
        "from drpo_graph.records import Query\n"
        "queries = [Query(id=str(n), text='t', kind='abc'[n % 3]) for n in range(30)]\n"
        "print(dataset_hash(order_queries(queries, seed=5, num_queries=17)))\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("num_queries", [4, 0, -1])
def test_asking_for_more_or_less_than_there_are_says_how_many_there_are(num_queries: int) -> None:
    with pytest.raises(DatasetError, match=f"{num_queries} queries were asked for, but the dataset has 3"):
        order_queries(make_queries("abc"), seed=0, num_queries=num_queries)


def test_no_queries_give_an_empty_order() -> None:
    assert order_queries((), seed=0) == ()


def test_hash_covers_ids_texts_kinds_and_order_but_not_tags() -> None:
    query, other = Query(id="a", text="t", kind="k"), Query(id="b", text="é", kind="k")
    base = dataset_hash([query, other])
    assert base == dataset_hash((query.model_copy(update={"tags": ("x",)}), other))
    changed = [
        [other, query],
        [query],
        *([query.model_copy(update={field: "new"}), other] for field in ("id", "text", "kind")),
    ]
    assert len({base, *(dataset_hash(queries) for queries in changed)}) == 6


def test_hash_is_the_sha256_of_the_canonical_json() -> None:
    digest = hashlib.sha256(b'[["a","\\u00e9","k"]]').hexdigest()
    assert dataset_hash([Query(id="a", text="é", kind="k")]) == digest


json_values = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=3)
near_records = st.dictionaries(
    st.sampled_from(["query", "text", "instruction", "input", "id", "kind", "category", "tags"]), json_values
).map(lambda record: json.dumps(record).encode("ascii"))
pieces = st.sampled_from(
    [b'"', b"\n", b"\r", b",", b"[", b"]", b"{", b"}", b"\0", b"\xff", b"query", b"text", b"a", b" "]
)
any_bytes = (
    st.binary(max_size=200)
    | st.lists(pieces, max_size=40).map(b"".join)
    | st.lists(near_records, max_size=4).map(b"\n".join)
    | st.lists(near_records, max_size=4).map(lambda records: b"[" + b",".join(records) + b"]")
    | st.lists(pieces, max_size=40).map(lambda parts: b"query,id\n" + b"".join(parts))
)


def check_loads_or_reports(source: str | Path, stdin: io.TextIOWrapper | None = None) -> None:
    """Load a dataset; whatever is wrong, it may only raise a DatasetError whose problems are single printable lines."""
    queries: tuple[Query, ...] = ()
    problems: tuple[str, ...] = ()
    try:
        queries = load_queries(source, stdin=stdin)
    except DatasetError as error:
        problems = (str(error).splitlines()[0], *error.problems)
    assert bool(queries) != bool(problems)
    assert all(len(problem.splitlines()) == 1 for problem in problems)
    assert len({query.id for query in queries}) == len(queries)
    assert all(query.text.strip() and "\0" not in query.text for query in queries)
    json.dumps([*problems, *texts_of(queries)], ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(content=any_bytes)
def test_any_file_loads_or_is_reported(tmp_path: Path, suffix: str, content: bytes) -> None:
    check_loads_or_reports(write(tmp_path, f"any.{suffix}", content))


@settings(max_examples=100, deadline=None)
@given(content=any_bytes)
def test_any_stdin_loads_or_is_reported(content: bytes) -> None:
    check_loads_or_reports("-", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_values_are_read_from_json_and_from_columns_of_csv(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"text": "Why?", "values": {"user": "Ann", "note": ""}}\n{"text": "How?"}\n')
    (tmp_path / "q.csv").write_text("text,values.user\nWhy?,Ann\nHow?,\n")
    assert [query.values for query in load_queries(tmp_path / "q.jsonl")] == [{"user": "Ann", "note": ""}, {}]
    assert [query.values for query in load_queries(tmp_path / "q.csv")] == [{"user": "Ann"}, {}]


@pytest.mark.parametrize(
    ("values", "told"), [('["Ann"]', "values must be an object"), ('{"user": 3}', "value 'user' must be a string")]
)
def test_values_that_are_no_texts_are_told(tmp_path: Path, values: str, told: str) -> None:
    (tmp_path / "q.jsonl").write_text(f'{{"text": "Why?", "values": {values}}}\n')
    with pytest.raises(DatasetError, match=told):
        load_queries(tmp_path / "q.jsonl")


def test_query_without_values_is_stored_and_hashed_as_before_there_were_any() -> None:
    plain, filled = Query(id="a", text="Why?"), Query(id="a", text="Why?", values={"user": "Ann"})
    assert set(plain.model_dump()) == {"id", "text", "kind", "tags"}
    assert Query.model_validate(filled.model_dump(mode="json")) == filled
    assert dataset_hash([plain]) == hashlib.sha256(b'[["a","Why?",""]]').hexdigest()
    assert dataset_hash([filled]) != dataset_hash([plain])
    assert {plain, filled} == {filled, plain}
