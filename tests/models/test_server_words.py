"""A server's words are found in whatever form it gives them, by both HTTP clients, in real calls and in probes."""

from typing import Any

import httpx
import openai
import pytest

from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import classify_failure
from drpo_graph.models.probing.probe import probe_endpoint
from drpo_graph.models.server_words import read_words
from tests.support.fake_errors import ERROR_FORMS, ErrorForm
from tests.support.fake_server import FakeServer, Reply, ServerOptions, build_echo_responder
from tests.support.roles import QUESTION, SCORE_SCHEMA, answer, by_content, failing, parse_answer, serve

SYSTEM_QUESTION = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"})

OVERFLOWS = [
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
    "prompt is too long: 208310 tokens > 200000 maximum",
    "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 3000 `inputs` tokens",
    "request (9001 tokens) exceeds the available context size (8192 tokens), try increasing it",
    "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
    "too many tokens: total number of tokens in the prompt cannot exceed 4081",
    "Input is too long for requested model.",
    "Please reduce the length of the messages or completion.",
    "Range of input length should be [1, 30720]",
    "The input (9001 tokens) is longer than the model's context length (8192 tokens).",
]
SYSTEM_REFUSALS = [
    "System role not supported",
    "Developer instruction is not enabled for models/gemma-3-27b-it",
    "Only user and assistant roles are supported!",
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
    'messages: Unexpected role "system". Give a top-level `system` parameter instead.',
    "messages.0.role: Input should be 'user' or 'assistant'",
    "This model does not support system messages.",
    "Invalid role 'system': expected one of user, assistant",
    "Please use a valid role: user, model.",
    "The first message must be from the user",
    "Please ensure that multiturn requests alternate between user and model.",
]


OTHERS = [
    "temperature must be at most 2",
    "max_tokens must be at most 4096",
    "messages.0.content: field required",
    "The role of this key does not allow that.",
]


def has_no_aiohttp(**_: object) -> None:
    raise RuntimeError("To use the aiohttp client you must have installed the package with the `aiohttp` extra")


@pytest.fixture(params=["aiohttp", "httpx"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have requests sent by one of the two HTTP clients."""
    if request.param == "httpx":
        monkeypatch.setattr(openai, "DefaultAioHttpClient", has_no_aiohttp)
    return str(request.param)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("form", ERROR_FORMS)
class TestForms:
    """Each form of an error, by each HTTP client."""

    async def test_overflow_is_told_by_a_real_call(self, form: ErrorForm) -> None:
        says = by_content({"long": failing(400, OVERFLOWS[0])}, answer(4))
        async with serve(says, ServerOptions(error_form=form)) as (server, desk):
            (sample,) = await desk.models.critic.ask([{"role": "user", "content": "long"}], parse=parse_answer)
            assert len(server.finished) == 1
        assert sample.failure is not None
        assert sample.failure.kind == "overflow"
        assert OVERFLOWS[0] in sample.failure.detail

    async def test_ladder_climbs(self, form: ErrorForm) -> None:
        options = ServerOptions(error_form=form, reject_response_format=True, reject_tools=True, log_bodies=True)
        async with serve(by_content({}, answer(4)), options) as (server, desk):
            (sample,) = await desk.models.critic.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA)
            statuses = [entry["status"] for entry in server.finished]
        assert sample.value == 4
        assert statuses == [400, 400, 400, 200]

    async def test_system_prompt_moves_to_the_user(self, form: ErrorForm) -> None:
        options = ServerOptions(error_form=form, reject_system_role=True)
        says = by_content({"Be kind.\n\nHello": Reply(["Hi"])}, Reply(["?"]))
        async with serve(says, options) as (server, desk):
            assert (await desk.models.base.respond(SYSTEM_QUESTION)).value == "Hi"
            assert [entry["status"] for entry in server.finished] == [400, 200]

    async def test_probe_sees_what_is_missing(self, form: ErrorForm) -> None:
        options = ServerOptions(error_form=form, reject_system_role=True, reject_response_format=True)
        async with FakeServer(build_echo_responder(), options) as server:
            found = await probe_endpoint(Address(server.base_url, "m"))
        assert (found.has_system_role, found.has_json_schema, found.has_json_mode) == (False, False, False)
        assert (found.has_chat, found.has_tools, found.has_n) == (True, True, True)


def refused(status: int, text: str) -> Exception:
    """Return what OpenAI's client raises for an answer."""
    response: Any = httpx.Response(status, text=text, request=httpx.Request("POST", "http://test/v1/chat/completions"))
    return openai.APIStatusError(f"Error code: {status}", response=response, body=None)


def remedy_for(status: int, text: str) -> tuple[str, bool]:
    failure = classify_failure(refused(status, text))
    assert failure is not None
    return failure.remedy, failure.is_overlong


@pytest.mark.parametrize("status", [400, 422])
def test_words_mean_the_same_whoever_says_them(status: int) -> None:
    assert {words: remedy_for(status, words) for words in OVERFLOWS} == dict.fromkeys(OVERFLOWS, ("reject", True))
    merged = {words: remedy_for(status, words) for words in SYSTEM_REFUSALS}
    assert merged == dict.fromkeys(SYSTEM_REFUSALS, ("merge_system", False))
    assert {words: remedy_for(status, words) for words in OTHERS} == dict.fromkeys(OTHERS, ("reject", False))


def test_500_that_is_no_passing_fault_is_told_by_its_words() -> None:
    assert remedy_for(500, "Context size has been exceeded.") == ("reject", True)
    assert remedy_for(500, "Only user and assistant roles are supported, got system.") == ("merge_system", False)
    assert remedy_for(500, "tools param requires --jinja flag") == ("climb", False)
    assert remedy_for(500, "The tool function server had an error") == ("retry", False)
    assert remedy_for(500, "Input queue exceeded its limit.") == ("retry", False)
    assert remedy_for(413, "") == ("reject", True)


def test_remedy_hangs_on_the_whole_of_a_long_answer() -> None:
    assert remedy_for(400, f"{'In other words, ' * 30}the context length is exceeded") == ("reject", True)


@pytest.mark.parametrize(
    ("body", "message", "code", "param"),
    [
        ('{"error": {"message": "m", "type": "t", "param": "n", "code": "c"}}', "m", "c t", "n"),
        ('{"error": {"message": "m", "code": 400}, "message": "m"}', "m", "", ""),
        ('{"detail": [{"loc": ["body", "top_p"], "msg": "bad", "input": "x"}, {"msg": "worse"}]}', None, "", "top_p"),
        ('[{"error": {"message": "m", "status": "INVALID_ARGUMENT"}}]', "m", "INVALID_ARGUMENT", ""),
        ('{"title": "Faults", "status": 400, "errors": {"N": ["too many"]}}', "n: too many", "", ""),
        ('{"type": "about:blank", "title": "Bad"}', "Bad", "about:blank", ""),
        ('{"__type": "ValidationException", "Message": "m"}', "m", "ValidationException", ""),
        ('{"error_description": "m"}', "m", "", ""),
        ('{"odd": 1}', '{"odd": 1}', "", ""),
        ("{broken", "{broken", "", ""),
        ("null", "null", "", ""),
        ('{"error": null, "message": true}', '{"error": null, "message": true}', "", ""),
        ("{}", "Error code: 400", "", ""),
        ("[" * 5000, "[" * 5000, "", ""),
        ('{"error": ' * 50 + '"deep"' + "}" * 50, None, "", ""),
        ("<!DOCTYPE html><title>502</title><script>x()</script><h1>502</h1><p>a &amp; b</p>", "502 a & b", "", ""),
        ("<unk> is no token", "<unk> is no token", "", ""),
        ("", "the server's answer is empty", "", ""),
    ],
)
def test_message_code_and_field_are_found(body: str, message: str | None, code: str, param: str) -> None:
    words = read_words(refused(400, body))
    assert message in (None, words.message)
    assert (words.code, words.param) == (code, param)


def test_located_faults_are_told_with_their_place_and_without_what_they_quote() -> None:
    body = '{"detail": [{"loc": ["body", "top_p"], "msg": "bad", "input": "secret plan"}, {"msg": "worse"}]}'
    assert read_words(refused(422, body)).message == "top_p: bad; worse"


def test_stream_that_was_not_read_leaves_the_error_s_own_words() -> None:
    response = httpx.Response(400, stream=httpx.ByteStream(b""), request=httpx.Request("GET", "http://test"))
    error = httpx.HTTPStatusError("refused", request=response.request, response=response)
    assert read_words(error).message == "refused"
