"""Text files with byte-order marks, wherever a command takes a file."""

from pathlib import Path

import pytest

from drpo_graph.cli.inputs import read_prompt
from drpo_graph.errors import SettingsError, UsageError
from drpo_graph.oirl.collection import load_tried_prompts
from drpo_graph.prompts.library import load_prompts
from drpo_graph.retrieval import load_icl_examples
from drpo_graph.safety.text_files import read_text
from drpo_graph.settings.layers import load_settings_file

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32")


def save(path: Path, text: str, encoding: str) -> Path:
    # Only the encodings that mark themselves can be told from UTF-8.
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    path.write_bytes((mark + text).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_file_is_read_as_its_mark_says(tmp_path: Path, encoding: str) -> None:
    assert load_settings_file(save(tmp_path / "s.toml", 'initial_prompt = "é"\n', encoding)) == {"initial_prompt": "é"}
    assert load_settings_file(save(tmp_path / "s.json", '{"initial_prompt": "é"}', encoding)) == {"initial_prompt": "é"}
    assert read_prompt(f"@{save(tmp_path / 'prompt.txt', 'Bé kind.', encoding)}") == "Bé kind."
    assert load_icl_examples(save(tmp_path / "icl.json", '{"é": "a"}', encoding))[0].query == "é"
    assert load_tried_prompts(save(tmp_path / "tried.ndjson", '{"prompt": "é"}\n', encoding))[0].prompt == "é"
    save(tmp_path / "repair.md", "é $problem", encoding)
    assert load_prompts(tmp_path).render_repair("x")["content"] == "é x"


def test_line_ends_read_as_newlines(tmp_path: Path) -> None:
    assert read_text(save(tmp_path / "a.txt", "a\r\nb\rc\n", "utf-8")) == "a\nb\nc\n"


def test_bytes_of_no_known_encoding_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(b'initial_prompt = "\xe9"')
    with pytest.raises(SettingsError, match=r"s\.toml: it is not UTF-8 text"):
        load_settings_file(tmp_path / "s.toml")
    with pytest.raises(UsageError, match="it is not UTF-8 text"):
        read_prompt(f"@{tmp_path / 's.toml'}")
