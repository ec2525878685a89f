"""Every function that takes data takes the same kinds of it, and names the rows that it cannot use."""

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from drpo_graph import build_graph, optimize
from drpo_graph.agents import make_optimize_tool
from drpo_graph.data.given import as_queries
from drpo_graph.data.references import as_answered
from drpo_graph.errors import DatasetError
from drpo_graph.icl import build_icl_graph, optimize_icl
from drpo_graph.oirl.collection import collect_demonstrations
from drpo_graph.records import Query
from drpo_graph.retrieval.examples import as_examples
from drpo_graph.runs.app_prompts import optimize_prompts
from drpo_graph.settings.layers import build_settings

PAIRS = [("One?", "1"), ("Two?", "2")]
ROWS: list[dict[str, object]] = [{"question": query, "answer": answer} for query, answer in PAIRS]
OPENAI: list[dict[str, object]] = [
    {"messages": [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]}
    for query, answer in PAIRS
]
SHAREGPT: list[dict[str, object]] = [
    {"conversations": [{"from": "human", "value": query}, {"from": "gpt", "value": answer}]} for query, answer in PAIRS
]


def write_lines(folder: Path, rows: Sequence[object]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig")
    return path


def write_table(folder: Path, rows: Sequence[dict[str, object]]) -> Path:
    path = folder / "rows.csv"
    path.write_text("question,answer\n" + "".join(f"{one['question']},{one['answer']}\n" for one in rows))
    return path


KINDS: dict[str, Callable[[Path], Any]] = {
    "dicts": lambda _: ROWS,
    "a generator": lambda _: (row for row in ROWS),
    "OpenAI's messages": lambda _: OPENAI,
    "ShareGPT": lambda _: SHAREGPT,
    "a frame of pandas": lambda _: pytest.importorskip("pandas").DataFrame(ROWS),
    "a column of pandas": lambda _: pytest.importorskip("pandas").Series(ROWS),
    "messages in pandas": lambda _: pytest.importorskip("pandas").DataFrame(OPENAI),
    "a frame of polars": lambda _: pytest.importorskip("polars").DataFrame(ROWS),
    "a table of Arrow": lambda _: pytest.importorskip("pyarrow").Table.from_pylist(OPENAI),
    "a file of lines": lambda folder: write_lines(folder, [*ROWS[:1], *SHAREGPT[1:]]),
    "a file of a table": lambda folder: write_table(folder, ROWS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_queries_answered_queries_and_examples_come_in_the_same_kinds(kind: str, tmp_path: Path) -> None:
    make = KINDS[kind]
    assert [one.text for one in as_queries(make(tmp_path))] == [query for query, _ in PAIRS]
    assert [(one.query.text, one.reference) for one in as_answered(make(tmp_path))] == PAIRS
    assert [(one.query, one.response) for one in as_examples(make(tmp_path))] == PAIRS


async def respond(prompts: object, query: Query) -> str:
    return ""


SETTINGS = build_settings({"model": "openai:m", "max_calls": 1})
ENTRY_POINTS: dict[str, Callable[[Any], Awaitable[object]]] = {
    "optimize": lambda rows: optimize(rows, settings=SETTINGS),
    "optimize, held out": lambda rows: optimize(settings=SETTINGS, validation=rows),
    "optimize_prompts": lambda rows: optimize_prompts(
        {"plan": "Plan."}, respond=respond, queries=rows, settings=SETTINGS
    ),
    "the graph": lambda rows: build_graph(SETTINGS).ainvoke({"queries": list(rows)}),
    "optimize_icl": lambda rows: optimize_icl(rows, settings=SETTINGS),
    "the ICL graph": lambda rows: build_icl_graph(SETTINGS).ainvoke(
        {"examples": list(rows), "num_iters": 1, "num_samples": 1}
    ),
    "collect_demonstrations": lambda rows: collect_demonstrations(rows, settings=SETTINGS),
}
ANSWERED = ("optimize_icl", "the ICL graph", "collect_demonstrations")
NAN, HALF = float("nan"), "\ud83d"
BAD_QUERIES: dict[str, object] = {
    "NaN": NAN,
    "half of a pair": HALF,
    "NaN for a text": {"question": NAN, "answer": "2"},
    "half of a pair for a text": {"question": HALF, "answer": "2"},
    "half of a pair in messages": {"messages": [{"role": "user", "content": HALF}]},
    "NaN in messages": {"conversations": [{"from": "human", "value": NAN}]},
    "half of a pair as a value's name": {"question": "b", "answer": "2", "values": {HALF: "x"}},
    "a record with half of a pair": Query(id="b", text=HALF),
}
BAD_ANSWERS: dict[str, object] = {
    "half of a pair for an answer": {"question": "b", "answer": HALF},
    "half of a pair in an answer of fields": {"question": "b", "answer": {"a": HALF}},
    "half of a pair after messages": {
        "messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": HALF}]
    },
}


@pytest.mark.parametrize("entry", ENTRY_POINTS)
async def test_row_that_cannot_be_used_is_named_wherever_it_is_given(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    for what, bad in {**BAD_QUERIES, **(BAD_ANSWERS if entry in ANSWERED else {})}.items():
        with pytest.raises(DatasetError, match=r"^(query|validation|example) 2: ") as caught:
            await ENTRY_POINTS[entry]([ROWS[0], bad])
        assert str(caught.value).isprintable(), what
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "No ICL examples"),
        (["One?"], "example 1: no response: expected response or output"),
        ([{"question": "a", "answer": None}], "example 1: no response"),
        ([{"question": "a", "response": " "}], "example 1: response is blank"),
        ([ROWS[0], ROWS[1], ROWS[0]], "examples 1 and 3 share a query"),
    ],
)
def test_examples_need_a_response_each_and_a_query_of_their_own(rows: list[dict[str, object]], told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        as_examples(rows)


def test_tool_refuses_rows_as_the_search_does() -> None:
    with pytest.raises(DatasetError, match=r"^query 1: "):
        make_optimize_tool(SETTINGS, queries=[HALF])
