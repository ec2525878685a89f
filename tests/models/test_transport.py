"""One request to one model: what is sent, and every choice and count that comes back."""

import json
from functools import partial
from typing import Any, Literal

import pytest
from aiohttp import web
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import MalformedReplyError
from drpo_graph.models.http_json import CompletionsClient
from drpo_graph.models.openai_clients import open_chat
from drpo_graph.models.request import Reply, ReplySchema, Request
from drpo_graph.models.transport import LangChainTransport, OpenAITransport
from drpo_graph.records import Usage
from tests.support.fake_server import FakeServer, LogEntry, ServerOptions, build_echo_responder
from tests.support.fake_server import Reply as ServerReply
from tests.support.roles import QUESTION, Desk, open_desk, parse_answer, script, serve

SCHEMA = ReplySchema("score", {"type": "object"})


async def send(desk: Desk, request: Request) -> Reply:
    return await desk.models.base.channel.client.replicas[0].transport.send(request)


async def sent_by(request: Request, **role: Any) -> dict[str, Any]:
    """Return the body of the HTTP request."""
    says = script(ServerReply(["a", "b"]))
    async with serve(says, role=role) as (_, desk):
        await send(desk, request)
    return says.bodies[0]


# Chat


async def test_chat_request_holds_all_that_decides_the_reply() -> None:
    body = await sent_by(
        Request(
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
            num_samples=2,
            temperature=0.7,
            top_p=0.9,
            max_tokens=77,
            seed=5,
            stop=("END",),
            extra_body={"top_k": 3},
        )
    )
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "n": 2,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_completion_tokens": 77,
        "seed": 5,
        "stop": ["END"],
        "top_k": 3,
        "stream": False,
    }


async def test_what_is_not_set_is_not_sent() -> None:
    body = await sent_by(Request(QUESTION))
    assert not {"seed", "stop", "tools", "response_format"} & set(body)
    assert body["temperature"] == 0


@pytest.mark.parametrize("mode", ["json_schema", "json", "tool", "text"])
async def test_format_follows_the_mode(mode: str) -> None:
    body = await sent_by(Request(QUESTION, mode=mode, schema=SCHEMA, extra_body={"top_k": 3}))
    kind = body.get("response_format", {}).get("type")
    assert kind == {"json_schema": "json_schema", "json": "json_object"}.get(mode)
    assert ("tools" in body) == (mode == "tool")
    assert body["top_k"] == 3
    if mode == "tool":
        assert body["tool_choice"] == {"type": "function", "function": {"name": "score"}}


async def test_usage_of_several_samples_is_counted_once() -> None:
    async with serve(script(ServerReply(["one two", "three", "four"]))) as (_, desk):
        reply = await send(desk, Request([{"role": "user", "content": "a b c d e"}], num_samples=3))
    assert [choice.text for choice in reply.choices] == ["one two", "three", "four"]
    assert reply.usage == Usage(calls=1, prompt_tokens=5, completion_tokens=4, cached_tokens=0)


class CachingServer(FakeServer):
    """Says that the prompt came from its prefix cache."""

    def _reply_to(self, *args: Any, entry: LogEntry) -> Any:
        response = super()._reply_to(*args, entry=entry)
        payload = json.loads(response.body)
        payload["usage"]["prompt_tokens_details"]["cached_tokens"] = 3
        response.body = json.dumps(payload).encode()
        return response


async def test_cached_tokens_are_read() -> None:
    async with CachingServer(script(ServerReply(["a", "b"]))) as server:
        desk = await open_desk(server.base_url)
        reply = await send(desk, Request([{"role": "user", "content": "a b c d"}], num_samples=2))
    assert reply.usage == Usage(calls=1, prompt_tokens=4, completion_tokens=2, cached_tokens=3)


async def test_each_choice_keeps_its_reason_and_refusal() -> None:
    says = script(
        ServerReply(["a", "b", ""], finish_reasons=["stop", "length", "stop"], refusals=[None, None, "I will not."])
    )
    async with serve(says) as (_, desk):
        reply = await send(desk, Request(QUESTION, num_samples=3))
    assert [(one.text, one.finish_reason, one.refusal) for one in reply.choices] == [
        ("a", "stop", None),
        ("b", "length", None),
        ("", "stop", "I will not."),
    ]


async def test_tool_arguments_are_the_text_as_the_model_wrote_them() -> None:
    arguments = ['{"score": 4}', '{"score": ', "[1]"]
    async with serve(script(ServerReply([""], tool_arguments=arguments))) as (_, desk):
        reply = await send(desk, Request(QUESTION, num_samples=3, mode="tool", schema=SCHEMA))
    assert [choice.text for choice in reply.choices] == arguments


# Completions


async def test_base_model_gets_a_flat_prompt_with_stops() -> None:
    says = script(ServerReply(["  A fine day.\n", "\tB"], finish_reasons=["stop", "length"]))
    role = {"endpoint": "completions", "stop": ["# Query", "\n\n\n"], "max_tokens": 50, "extra_body": {"top_k": 3}}
    async with serve(says, ServerOptions(log_bodies=True), role=role) as (server, desk):
        request = Request(
            [{"role": "system", "content": "# Instruction"}, {"role": "user", "content": "# Query:\nHi\n# Answer:\n"}],
            num_samples=2,
            max_tokens=50,
            seed=3,
            stop=("# Query",),
            extra_body={"top_k": 3},
            endpoint="completions",
        )
        reply = await send(desk, request)
        (entry,) = server.finished
    assert entry["path"] == "/v1/completions"
    body = entry["body"]
    assert says.bodies[0]["prompt"] == "# Instruction\n\n# Query:\nHi\n# Answer:\n"
    assert (body["n"], body["max_tokens"], body["seed"], body["stop"]) == (2, 50, 3, ["# Query"])
    assert (body["temperature"], body["top_k"]) == (0.0, 3)
    assert [(one.text, one.finish_reason) for one in reply.choices] == [("  A fine day.\n", "stop"), ("\tB", "length")]
    assert (reply.usage.calls, reply.usage.completion_tokens) == (1, 4)


async def test_completions_count_what_the_server_had_in_its_cache() -> None:
    async with CachingServer(script(ServerReply(["a b"]))) as server:
        desk = await open_desk(server.base_url)
        reply = await send(desk, Request([{"role": "user", "content": "a b c d"}], endpoint="completions"))
    assert reply.usage == Usage(calls=1, prompt_tokens=4, completion_tokens=2, cached_tokens=3)


async def test_key_is_sent_to_both_endpoints() -> None:
    options = ServerOptions(api_key="secret", log_bodies=True)
    async with FakeServer(build_echo_responder(), options) as server:
        address = Address(server.base_url, "m", "secret")
        transport = OpenAITransport(
            partial(open_chat, address, timeout_s=30.0), partial(CompletionsClient, address, timeout_s=30.0)
        )
        for endpoint in ("chat", "completions"):
            await transport.send(Request(QUESTION, endpoint=endpoint))
        assert [entry["path"] for entry in server.finished] == ["/v1/chat/completions", "/v1/completions"]
        assert [entry["status"] for entry in server.finished] == [200, 200]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize(
    "body", ["<html>busy</html>", "[]", '{"error": "no"}', '{"choices": [3]}', '{"choices": null}']
)
async def test_answer_that_is_no_reply_is_malformed(endpoint: Literal["chat", "completions"], body: str) -> None:
    class BrokenServer(FakeServer):
        def _reply_to(self, *_: Any, **__: Any) -> Any:
            return web.Response(text=body, content_type="application/json")

    async with BrokenServer(script()) as server:
        desk = await open_desk(server.base_url)
        with pytest.raises(MalformedReplyError):
            await send(desk, Request(QUESTION, endpoint=endpoint))


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_probabilities_of_possible_scores_are_kept_for_each_sample(
    endpoint: Literal["chat", "completions"],
) -> None:
    texts = ['"é☃": 4, "4": "a 2"', "no number", '"b": 9']
    says = script(ServerReply(texts, probabilities={6: {"4": 0.6, "5": 0.2, " 3": 0.1, "x": 0.1}}))
    async with serve(says) as (_, desk):
        reply = await send(desk, Request(QUESTION, num_samples=3, top_logprobs=3, endpoint=endpoint))
    first, second, third = (choice.score_tokens for choice in reply.choices)
    assert [(one.offset, one.probabilities) for one in first] == [
        (6, (0, 0, 0.111111, 0.666667, 0.222222)),
        (10, (0, 0, 0, 1, 0)),
        (17, (0, 1, 0, 0, 0)),
    ]
    assert second == third == ()
    asked = {name: value for name, value in says.bodies[0].items() if "logprobs" in name}
    assert asked == ({"logprobs": True, "top_logprobs": 3} if endpoint == "chat" else {"logprobs": 3})


# Any chat model


class CountingModel(BaseChatModel):
    """Gives one sample per request and remembers what it was asked."""

    asked: list[Any] = []  # noqa: RUF012

    @property
    def _llm_type(self) -> str:
        return "counting"

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        self.asked.append(([message.content for message in messages], stop))
        message = AIMessage(
            f'{{"score": {len(self.asked)}}}',
            usage_metadata={
                "input_tokens": 7,
                "output_tokens": 2,
                "total_tokens": 9,
                "input_token_details": {"cache_read": 4},
            },
            response_metadata={"stop_reason": "end_turn"},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


async def test_any_chat_model_gives_several_samples_through_single_calls() -> None:
    model = CountingModel(asked=[])
    desk = await open_desk("http://unused.test/v1", models={"optimizer": model}, role={"stop": ["END"]})
    samples = await desk.models.optimizer.ask(QUESTION, parse=parse_answer, num_samples=3)
    assert sorted(sample.value or 0 for sample in samples) == [1, 2, 3]
    assert model.asked == [(["How good is it?"], ["END"])] * 3
    assert desk.ledger.usage_by_role["optimizer"] == Usage(
        calls=3, prompt_tokens=21, completion_tokens=6, cached_tokens=12
    )


async def test_chat_model_that_counts_nothing_is_counted_by_calls() -> None:
    model = FakeListChatModel(responses=["one", "two"])
    transport = LangChainTransport(model)
    for text in ("one", "two"):
        reply = await transport.send(Request(QUESTION, num_samples=5))
        assert [choice.text for choice in reply.choices] == [text]
        assert reply.usage == Usage(calls=1)


async def test_reason_to_stop_is_read_under_either_name() -> None:
    reply = await LangChainTransport(CountingModel(asked=[])).send(Request(QUESTION))
    assert reply.choices[0].finish_reason == "end_turn"


class ToolModel(CountingModel):
    """Answers with a tool call, as LangChain reads them."""

    calls: dict[str, Any]

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", **self.calls))])


class LimitedModel(BaseChatModel):
    """A model of a provider that calls the length of its replies its own name; it answers with what it is set to."""

    num_predict: int | None = None

    @property
    def _llm_type(self) -> str:
        return "limited"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(str(self.num_predict)))])


@pytest.mark.parametrize(("own", "told"), [(None, "50"), (-1, "50"), (70, "50"), (30, "30")])
async def test_any_model_is_told_how_long_a_reply_may_be_and_keeps_a_smaller_limit_of_its_own(
    own: int | None, told: str
) -> None:
    model = LimitedModel(num_predict=own)
    reply = await LangChainTransport(model).send(Request(QUESTION, max_tokens=50))
    assert reply.choices[0].text == told
    assert model.num_predict == own


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        ({"tool_calls": [{"name": "score", "args": {"score": 4}, "id": "1"}]}, '{"score": 4}'),
        ({"invalid_tool_calls": [{"name": "score", "args": '{"sco', "id": "1", "error": "cut"}]}, '{"sco'),
        ({"invalid_tool_calls": [{"name": "score", "args": None, "id": "1", "error": "cut"}]}, ""),
    ],
)
async def test_tool_calls_of_any_chat_model_are_read(calls: dict[str, Any], text: str) -> None:
    reply = await LangChainTransport(ToolModel(calls=calls)).send(Request(QUESTION))
    assert reply.choices[0].text == text


# Keys


def test_format_is_part_of_a_request_s_identity_only_where_one_is_asked_for() -> None:
    plain = Request(QUESTION, schema=SCHEMA).key_parts()
    assert plain["schema"] is None
    assert Request(QUESTION, schema=SCHEMA, mode="tool").key_parts()["schema"] == {"type": "object"}
    assert json.loads(json.dumps(plain)) == plain


def test_what_is_rarely_asked_for_is_part_of_a_key_only_where_it_is() -> None:
    plain = Request(QUESTION).key_parts()
    names = {"messages", "n", "temperature", "top_p", "max_tokens", "seed", "stop", "mode", "schema", "extra_body"}
    assert plain.keys() == names
    flat = Request(QUESTION, endpoint="completions", top_logprobs=20).key_parts()
    assert flat == {**plain, "endpoint": "completions", "top_logprobs": 20}
