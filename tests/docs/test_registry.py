"""The Python block of docs/registry.md runs."""

from pathlib import Path

import pytest
from langchain_core.messages import SystemMessage

from tests.docs.snippets import read_snippets, run_snippet
from tests.docs.test_inference import RESULT

DOCUMENT = "docs/registry.md"


def test_snippet_keeps_a_run_s_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "drpo_runs" / "tides"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(RESULT.model_dump_json())
    (snippet,) = read_snippets(DOCUMENT)
    namespace: dict[str, object] = {"__name__": "snippet"}
    run_snippet(snippet, DOCUMENT, namespace)
    asked = namespace["template"].invoke({"messages": []}).to_messages()  # type: ignore[attr-defined]
    assert asked == [SystemMessage(RESULT.system_prompt)]
    assert "drpo-openai-gpt-5-mini" in str(namespace["manifest"])
