"""LangChain's callbacks are told of every model call inside a graph, with what it was made for."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, get_usage_metadata_callback

from tests.conformance.graphs import CASES, make_settings, serve_models


class Listener(AsyncCallbackHandler):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self.calls: list[dict[str, Any]] = []

    async def on_chat_model_start(self, *given: Any, metadata: Any = None, tags: Any = None, **rest: Any) -> None:
        self.told["start"] += 1
        self.calls.append({"tags": tags, **(metadata or {})})

    async def on_llm_start(self, *given: Any, **rest: Any) -> None:
        await self.on_chat_model_start(*given, **rest)

    async def on_llm_end(self, *given: Any, **rest: Any) -> None:
        self.told["end"] += 1

    async def on_llm_error(self, *given: Any, **rest: Any) -> None:
        self.told["error"] += 1


class Failing(AsyncCallbackHandler):
    """Fails whatever it is told."""

    async def on_chat_model_start(self, *given: Any, **rest: Any) -> None:
        raise RuntimeError("broken")


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serve_models() as url:
        yield url


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("name", CASES)
async def test_every_call_is_told_with_its_purpose(name: str, endpoint: str, base_url: str) -> None:
    case, listener = CASES[name], Listener()
    graph = case.build(make_settings(base_url, base_endpoint=endpoint), {})
    with get_usage_metadata_callback() as usage:
        output = await graph.with_config(callbacks=[listener]).ainvoke(case.given)
    counted = output["result"]["usage_by_role"]
    num_calls = sum(one["calls"] for one in counted.values())
    assert listener.told == {"start": num_calls, "end": num_calls}
    by_role = Counter(call["drpo_role"] for call in listener.calls)
    assert by_role == {role: one["calls"] for role, one in counted.items() if one["calls"]}
    for call in listener.calls:
        assert {"drpo", f"drpo:{call['drpo_role']}"} <= set(call["tags"])
        assert call["drpo_run_id"]
        assert call["drpo_role"] == "optimizer" or call["drpo_query_id"]
        if name != "ICL" and call["drpo_role"] in ("base", "critic"):
            assert call["drpo_candidate_id"]
            assert call["drpo_level"] >= 0
    if endpoint == "chat":
        (told,) = usage.usage_metadata.values()
        assert told["input_tokens"] == sum(one["prompt_tokens"] for one in counted.values())
        assert told["output_tokens"] == sum(one["completion_tokens"] for one in counted.values())


@pytest.mark.parametrize("name", CASES)
async def test_messages_are_streamed(name: str, base_url: str) -> None:
    case = CASES[name]
    graph = case.build(make_settings(base_url), {})
    parts = [part async for part in graph.astream(case.given, stream_mode=["messages", "values"], subgraphs=True)]
    messages = [told for _, mode, told in parts if mode == "messages"]
    counted = parts[-1][2]["result"]["usage_by_role"]
    assert len(messages) == sum(one["calls"] for one in counted.values())
    assert all(message.content and metadata["drpo_role"] for message, metadata in messages)


async def test_a_call_that_fails_is_told_and_a_listener_that_fails_breaks_nothing(base_url: str) -> None:
    listener, case = Listener(), CASES["search"]
    graph = case.build(make_settings("http://127.0.0.1:9/v1", max_outage_s=0, retry_wait_s=0.01, max_retries=1), {})
    with pytest.raises(Exception, match="cannot be reached"):
        await graph.with_config(callbacks=[listener]).ainvoke(case.given)
    assert listener.told["error"] == listener.told["start"] > 0
    graph = case.build(make_settings(base_url), {})
    output = await graph.with_config(callbacks=[Failing()]).ainvoke(case.given)
    assert output["result"]["status"] == "done"
