"""The search that runs on a real vLLM, on the embedded model."""

from pathlib import Path

import pytest

from drpo_graph.records import Usage
from tests.vllm.served import Runs


@pytest.mark.local
@pytest.mark.timeout(600)
def test_search_through_the_embedded_model(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    result = runs.run("embedded", [], model="local:smollm2", max_concurrency=4)
    assert result.status == "done"
    assert result.depth == 2
    usage = Usage()
    for one in result.usage_by_role.values():
        usage = usage.plus(one)
    # A fifth to two fifths: which of the server's slots takes a call, and so what it still knows, depends on time.
    assert usage.cached_tokens > usage.prompt_tokens / 10
    samples = [event for event in runs.events("embedded") if event.get("role") == "optimizer"]
    assert {event["num_samples"] for event in samples if event["type"] == "call_finished"} >= {3}
