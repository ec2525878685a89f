"""``drpo generate`` with the embedded model."""

import json
from pathlib import Path

import pytest

from tests.support.command import finish, spawn_drpo

OWN = ("--model", "local:smollm2", "--system-prompt", "Answer in one short sentence.", "--max-tokens", "48")


@pytest.mark.local
@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", [[], ["--set", "base.endpoint=completions"]], ids=["chat", "flat"])
def test_embedded_model_streams_what_it_answers_as_a_whole(tmp_path: Path, form: list[str]) -> None:
    streamed = finish(spawn_drpo("generate", "What is rain?", *OWN, *form, folder=tmp_path, environment={}), 140)
    whole = finish(spawn_drpo("generate", "What is rain?", *OWN, *form, "--json", folder=tmp_path, environment={}), 140)
    assert (streamed.code, whole.code) == (0, 0), streamed.err + whole.err
    told = json.loads(whole.out)
    assert streamed.out.strip() == told["response"]
    assert 0 < told["usage"]["output_tokens"] <= 48
    assert "# Query" not in streamed.out
