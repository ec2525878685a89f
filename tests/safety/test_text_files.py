"""Text files with byte-order marks, wherever a command takes a file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from drpo_graph.agents import PromptSlot
from drpo_graph.cli.inputs import read_prompt
from drpo_graph.data.datasets import load_queries
from drpo_graph.errors import SettingsError, UsageError
from drpo_graph.oirl.collection import load_tried_prompts
from drpo_graph.oirl.published.answers import read_answer_lines
from drpo_graph.oirl.published.logs import Problems
from drpo_graph.oirl.published.texts import read_prompt_texts, read_query_texts
from drpo_graph.oirl.tables import load_demonstrations
from drpo_graph.parts.defaults import load_metrics_cache
from drpo_graph.prompts.library import load_prompts
from drpo_graph.records import Metric
from drpo_graph.registry import PromptRegistry
from drpo_graph.registry.published import read_model_mapping, read_published_prompt
from drpo_graph.retrieval import load_icl_examples
from drpo_graph.safety.text_files import read_stream, read_text
from drpo_graph.serving.keys import borrow_key
from drpo_graph.settings.layers import load_settings_file

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32")


def save(path: Path, text: str, encoding: str) -> Path:
    # Only the encodings that mark themselves can be told from UTF-8.
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    path.write_bytes((mark + text).encode(encoding))
    return path


def read_key(path: Path) -> object:
    key = borrow_key(variable=None, file=path, environment={})
    return key and key.value


def read_slot(path: Path) -> object:
    return PromptSlot(path).current.text


def read_stdin(path: Path) -> object:
    with path.open(encoding="utf-8") as stream:
        return read_stream(stream)


def read_template(path: Path) -> object:
    return load_prompts(path.parent).render_repair("x")["content"]


def read_metric_names(path: Path) -> object:
    return load_prompts(path.parent).metrics[0].name


SLOT = {"format": 1, "current": 1, "versions": [{"version": 1, "text": "é", "time": 0.0}]}
READERS: dict[str, tuple[str, str, Callable[[Path], object], object]] = {
    "settings": ("s.toml", 'initial_prompt = "é"\n', load_settings_file, {"initial_prompt": "é"}),
    "settings as JSON": ("s.json", '{"initial_prompt": "é"}', load_settings_file, {"initial_prompt": "é"}),
    "@FILE": ("prompt.txt", "Bé kind.", lambda path: read_prompt(f"@{path}"), "Bé kind."),
    "queries": ("q.jsonl", '{"query": "é"}\n', lambda path: load_queries(path)[0].text, "é"),
    "queries as text": ("q.txt", "é\n", lambda path: load_queries(path)[0].text, "é"),
    "queries as a table": ("q.csv", "query,kind\né,a\n", lambda path: load_queries(path)[0].text, "é"),
    "ICL examples": ("icl.json", '{"é": "a"}', lambda path: load_icl_examples(path)[0].query, "é"),
    "ICL rows": ("icl.jsonl", '{"query": "é", "output": "a"}', lambda path: load_icl_examples(path)[0].query, "é"),
    "prompts to try": ("tried.ndjson", '{"prompt": "é"}\n', lambda path: load_tried_prompts(path)[0].prompt, "é"),
    "a template": ("repair.md", "é $problem", read_template, "é x"),
    "metrics": ("metrics.toml", '[[metric]]\nname = "Ä"\ndefinition = "d"\n', read_metric_names, "Ä"),
    "a metrics cache": (
        "cache.json",
        json.dumps({"é": {"metrics": ["Clarity"], "reasoning": "r"}}, ensure_ascii=False),
        lambda path: list(load_metrics_cache(path, known=[Metric(name="Clarity", definition="d")])),
        ["é"],
    ),
    "a server's key": ("key", "secret-key\n", read_key, "secret-key"),
    "stdin": ("stdin", "é\n", read_stdin, "é\n"),
    "a registered prompt": (
        "m.json",
        '{"model": "m", "system_prompt": "é", "source": "s"}',
        lambda path: PromptRegistry(path.parent).require("m").system_prompt,
        "é",
    ),
    "a prompt slot": ("slot.json", json.dumps(SLOT, ensure_ascii=False), read_slot, "é"),
    "a published prompt": ("output.txt", "é\n", read_published_prompt, "é"),
    "a published mapping": (
        "model_mapping.json",
        '{"m": "./output.txt"}',
        lambda path: read_model_mapping(path)[1],
        (),
    ),
    "demonstrations": (
        "d.jsonl",
        '{"query": "é", "prompt": "p", "outcome": 1}\n',
        lambda path: next(iter(load_demonstrations(path))).query,
        "é",
    ),
    "published prompts": ("p.json", '["é"]', lambda path: read_prompt_texts(path)[0].text, "é"),
    "published folds": (
        "fold1/train.csv",
        "Question,Numbers\né,1\n",
        lambda path: read_query_texts(path.parents[1]).texts,
        ("é",),
    ),
    "published answers": (
        "a.txt",
        "(0, True)\n",
        lambda path: read_answer_lines(path, Problems(path.parent), num_queries=1).num_right.tolist(),
        [1],
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_file_is_read_as_its_mark_says(tmp_path: Path, reader: str) -> None:
    name, text, read, expected = READERS[reader]
    for encoding in ENCODINGS:
        path = tmp_path / encoding / name
        path.parent.mkdir(parents=True)
        path.parent.parent.joinpath("output.txt").write_text("x")
        assert read(save(path, text, encoding)) == expected, encoding


def test_marks_of_files_that_were_joined_stand_in_no_query(tmp_path: Path) -> None:
    (tmp_path / "both.txt").write_bytes("One?\r\n".encode("utf-8-sig") + "Two?\r\n".encode("utf-8-sig"))
    assert [one.text for one in load_queries(tmp_path / "both.txt")] == ["One?", "Two?"]


def test_line_ends_read_as_newlines(tmp_path: Path) -> None:
    assert read_text(save(tmp_path / "a.txt", "a\r\nb\rc\n", "utf-8")) == "a\nb\nc\n"


def test_bytes_of_no_known_encoding_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(b'initial_prompt = "\xe9"')
    with pytest.raises(SettingsError, match=r"s\.toml: it is not UTF-8 text"):
        load_settings_file(tmp_path / "s.toml")
    with pytest.raises(UsageError, match="it is not UTF-8 text"):
        read_prompt(f"@{tmp_path / 's.toml'}")
