"""What a caller gives as a role's model: an instance, bound or with fallbacks; the rest is refused by name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import Field, SecretStr

from drpo_graph import build_graph
from drpo_graph.errors import SettingsError
from drpo_graph.models.clients import build_client
from drpo_graph.models.request import Request
from drpo_graph.models.transport import StreamingTransport
from drpo_graph.settings.settings import Settings
from tests.conformance.graphs import QUERIES, RECURSION, make_settings
from tests.support.command import serve
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.oracle import build_responder


class OtherModel(BaseChatModel):
    """A provider's model that is no OpenAI client: it tells how it was asked."""

    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    calls: list[dict[str, Any]] = Field(default_factory=list)
    error: Any = None

    @property
    def _llm_type(self) -> str:
        return "other"

    def _generate(
        self, messages: list[BaseMessage], stop: Sequence[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_output_tokens}
        self.calls.append({**sampling, "stop": stop, "tags": self.tags, **kwargs})
        if self.error is not None:
            raise self.error
        message = AIMessage(f"Answer {len(self.calls)}.")
        return ChatResult(generations=[ChatGeneration(message=message)])


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with serve(build_responder(seed=3), ServerOptions(log_bodies=True)) as running:
        yield running


async def run(server: FakeServer, models: Mapping[str, Any], **more: object) -> dict[str, Any]:
    graph: Any = build_graph(make_settings(server.base_url, **more), models=models)
    output: dict[str, Any] = await graph.ainvoke({"queries": QUERIES}, RECURSION)
    return output


def open_ai(server: FakeServer, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(model="own", base_url=server.base_url, api_key=SecretStr("k"), **fields)


def last_body(server: FakeServer, model: str = "own") -> dict[str, Any]:
    bodies: list[dict[str, Any]] = [one["body"] for one in server.finished]  # type: ignore[typeddict-item]
    return [one for one in bodies if one["model"] == model][-1]


async def test_what_is_bound_is_sent(server: FakeServer) -> None:
    bound = open_ai(server).bind(user="me", temperature=0.25, max_tokens=77, extra_body={"top_k": 5}, stop=["END"])
    await run(server, {"base": bound.with_config({"tags": ["t"]}).bind(presence_penalty=0.5)})
    body = last_body(server)
    wanted = {"user": "me", "temperature": 0.25, "top_k": 5, "presence_penalty": 0.5, "max_completion_tokens": 77}
    assert {name: body.get(name) for name in wanted} == wanted
    assert "END" in body["stop"]


async def test_other_providers_instances_are_sampled_as_the_role_is(server: FakeServer) -> None:
    model = OtherModel(temperature=0.9)
    role = {"temperature": 0.3, "top_p": 0.8, "max_tokens": 99}
    await run(
        server, {"base": model.with_config({"tags": ["t"]})}, **{f"base_{name}": one for name, one in role.items()}
    )
    assert {name: model.calls[-1][name] for name in (*role, "tags")} == {**role, "tags": ["t"]}
    await run(server, {"base": model.bind(temperature=0.4, max_tokens=50, seed=7, top_k=3)})
    sent = {"temperature": 0.4, "max_tokens": 50, "seed": 7, "top_k": 3}
    assert {name: model.calls[-1][name] for name in sent} == sent


async def test_a_model_that_fails_is_followed_by_the_next(server: FakeServer) -> None:
    lost = ChatOpenAI(model="own", base_url="http://127.0.0.1:9/v1", api_key=SecretStr("k"))
    model = OtherModel()
    output = await run(server, {"base": lost.with_fallbacks([OtherModel(error=ConnectionError("gone")), model])})
    assert output["result"]["status"] == "done"
    assert model.calls


async def test_a_stream_goes_on_to_the_next_before_it_begins() -> None:
    model = OtherModel()
    given = OtherModel(error=ConnectionError("gone")).with_fallbacks([model])
    transport = build_client("base", Settings(), given).replicas[0].transport
    assert isinstance(transport, StreamingTransport)
    request = Request([{"role": "user", "content": "Why?"}])
    assert "".join([piece.text async for piece in transport.stream(request)]) == "Answer 1."


async def test_neither_a_bug_nor_what_its_caller_left_out_is_followed(server: FakeServer) -> None:
    other = OtherModel()
    for error, handled in ((AssertionError("bug"), (Exception,)), (ConnectionError("gone"), (ValueError,))):
        failing = OtherModel(error=error).with_fallbacks([other], exceptions_to_handle=handled)
        with pytest.raises(Exception, match=r"bug|gone"):
            await run(server, {"base": failing}, max_retries=0, max_outage_s=0)
    assert not other.calls


PLAIN = OtherModel()
REFUSED = {
    "retry": (PLAIN.with_retry(), "RunnableRetry.*asks again"),
    "sequence": (PLAIN | StrOutputParser(), "RunnableSequence"),
    "bound sequence": ((PLAIN | StrOutputParser()).bind(top_k=3), "RunnableSequence"),
    "fallback to a chain": (PLAIN.with_fallbacks([PLAIN | StrOutputParser()]), "RunnableSequence"),
    "tools": (PLAIN.bind(tools=[]), "'tools' bound to it"),
    "samples": (PLAIN.bind(n=3), "'n' bound to it"),
    "listeners": (PLAIN.with_listeners(), "RunnableBinding"),
    "name": ("openai:m", "str.*in the settings"),
    "number": (3, "int"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_no_chat_model_is_refused_as_the_graph_is_built(how: str) -> None:
    model, told = REFUSED[how]
    given: Any = {"critic": model}
    with pytest.raises(SettingsError, match=rf"^The critic model.*{told}"):
        build_graph(models=given)


@pytest.mark.parametrize(("models", "told"), [({"judge": PLAIN}, "no role 'judge'"), (PLAIN, "models by role")])
def test_models_are_given_by_role(models: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=rf"^models: .*{told}"):
        build_graph(models=models)


@pytest.mark.parametrize("is_given", [True, False])
async def test_no_cache_makes_samples_equal(server: FakeServer, *, is_given: bool) -> None:
    cache = InMemoryCache()
    set_llm_cache(cache)
    try:
        model = open_ai(server)
        await run(server, {"base": model, "optimizer": OtherModel()} if is_given else {})
        assert not cache._cache
    finally:
        set_llm_cache(None)
    assert model.cache is None
