"""Which fields of a request a server's words refuse, and what is left to send."""

from typing import Any

import pytest

from drpo_graph.models.failures import classify_failure
from drpo_graph.models.request import Piece
from drpo_graph.models.stops import end_at_stops
from drpo_graph.models.terms import NO_TERMS, Terms, find_refused

UNSUPPORTED = "Unsupported parameter: '{}' is not supported with this model."


class BadRequestError(Exception):
    def __init__(self, message: str, *, body: object = None, status: int = 400) -> None:
        super().__init__(message)
        self.status_code = status
        self.body = body
        self.param = body.get("param") if isinstance(body, dict) else None


@pytest.mark.parametrize(
    ("message", "body", "refused"),
    [
        *[(UNSUPPORTED.format(name), {}, (name,)) for name in ("top_p", "stop", "seed", "n", "reasoning_effort")],
        (UNSUPPORTED.format("max_tokens") + " Use 'max_completion_tokens' instead.", {}, ("max_tokens",)),
        (
            "'temperature' does not support 0 with this model. Only the default (1) value is supported.",
            {},
            ("temperature",),
        ),
        ("`temperature` and `top_p` cannot both be specified for this model. Please use only one.", {}, ("top_p",)),
        ("`temperature` is deprecated for this model.", {}, ("temperature",)),
        ("top_p must be 1 when using greedy sampling.", {}, ("top_p",)),
        ("`temperature` must be strictly positive", {}, ("temperature",)),
        ("temperature is not supported when thinking is enabled", {}, ("temperature",)),
        ("This model does not support the effort parameter.", {}, ("reasoning_effort",)),
        ("output_config.effort: Extra inputs are not permitted", {}, ("reasoning_effort",)),
        ("400", {"param": "n", "message": "Invalid n value (currently only n = 1 is supported)"}, ("n",)),
        (
            "422",
            {
                "detail": [
                    {"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "no", "input": 9}
                ]
            },
            ("max_completion_tokens",),
        ),
        (
            "422",
            {"message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "no"}]}},
            ("seed",),
        ),
        (
            'Error response 422: {"detail":[{"type":"extra_forbidden","loc":["body","max_completion_tokens"]',
            None,
            ("max_completion_tokens",),
        ),
        ("This is not supported.", {"param": "stop", "code": "unsupported_parameter"}, ("stop",)),
        ("no", {"param": "top_p", "code": "unsupported_parameter"}, ("top_p",)),
        (
            "UnsupportedParamsError: openai does not support parameters: ['max_completion_tokens'], for model=x",
            {},
            ("max_completion_tokens",),
        ),
        ("invalid temperature: only 1 is allowed for this model", {}, ("temperature",)),
        ("temperature may only be set to 1 when thinking is enabled", {}, ("temperature",)),
        ("top_p is not a supported parameter of this endpoint", {}, ("top_p",)),
        ("max_completion_tokens is not a supported parameter", {}, ("max_completion_tokens",)),
        ("seed is not available for this model", {}, ("seed",)),
        ("The seed parameter is unavailable in this region", {}, ("seed",)),
        # Values out of bounds, and words that name no field.
        ("temperature must be below 2", {}, ()),
        ("Invalid 'temperature': decimal above maximum value.", {"param": "temperature"}, ()),
        (
            "max_tokens is too large: 9000. This model supports at most 4096 completion tokens.",
            {"param": "max_tokens"},
            (),
        ),
        ("422", {"detail": [{"type": "less_than_equal", "loc": ["body", "top_p"], "msg": "no"}]}, ()),
        ("Your request was not accepted: stop sending n messages.", {}, ()),
        ("The model does not support images.", {}, ()),
    ],
)
def test_field_is_refused_where_the_server_says_so(message: str, body: Any, refused: tuple[str, ...]) -> None:
    failure = classify_failure(BadRequestError(message, body=body))
    assert failure is not None
    assert failure.refused == refused
    assert failure.remedy == ("adapt" if refused else "reject")


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (ValueError("`temperature` is not supported for claude-sonnet-5-5 at non-default values."), ("temperature",)),
        (TypeError("AsyncMessages.create() got an unexpected keyword argument 'top_p'"), ("top_p",)),
        (ValueError("could not convert string to float: 'temperature'"), None),
        (TypeError("f() got an unexpected keyword argument 'colour'"), None),
        (KeyError("'stop' is not supported"), None),
    ],
)
def test_field_that_a_client_does_not_send_is_refused_too(error: Exception, refused: tuple[str, ...] | None) -> None:
    failure = classify_failure(error)
    told = None if failure is None else (failure.remedy, failure.refused)
    assert told == (None if refused is None else ("adapt", refused))


@pytest.mark.parametrize(
    ("name", "remedy"), [("response_format", "climb"), ("tools", "climb"), ("logprobs", "lower_logprobs")]
)
def test_refused_form_of_reply_has_a_remedy_of_its_own(name: str, remedy: str) -> None:
    detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]
    for error in (
        BadRequestError(UNSUPPORTED.format(name)),
        BadRequestError("422", body={"detail": detail}, status=422),
    ):
        failure = classify_failure(error)
        assert failure is not None
        assert failure.remedy == remedy


def test_terms_grow_by_what_is_refused_and_end() -> None:
    fields: dict[str, Any] = {"max_tokens": 9, "temperature": 0.0, "top_p": 1.0}
    one = NO_TERMS.after(["max_tokens"])
    assert one.apply(fields) == {"max_completion_tokens": 9, "temperature": 0.0, "top_p": 1.0}
    two = one.after(["temperature"]).after(["top_p"])
    assert two.apply(fields) == {"max_completion_tokens": 9}
    assert two.describe_since(NO_TERMS) == (
        "temperature and top_p are no longer sent; its token limit goes by the name of max_completion_tokens"
    )
    # A limit that goes by no name stays: a reply without one could cost anything.
    assert two.after(["max_completion_tokens"]) == two.after(["temperature"]) == two
    assert Terms.model_validate(two.model_dump(mode="json")) == two


def test_refusal_quotes_no_field_out_of_a_prompt() -> None:
    assert find_refused("Unknown error", {"param": "messages", "message": "what is a good temperature?"}) == ()


@pytest.mark.parametrize(
    "texts", [["ab", "cSTOPdef"], ["abcS", "TOP", "d"], ["abc", "S", "T", "OP"], ["a", "b", "cSTOP", "xSTOP"]]
)
async def test_stream_ends_at_a_stop_that_the_server_does_not_take(texts: list[str]) -> None:
    async def give() -> Any:
        for text in texts:
            yield Piece(text)
        yield Piece(finish_reason="stop")

    assert "".join([piece.text async for piece in end_at_stops(give(), ("STOP", "x"))]) == "abc"


async def test_beginning_of_a_stop_that_is_none_is_handed_on() -> None:
    async def give() -> Any:
        for text in ("abcS", "TOO", " S"):
            yield Piece(text)

    assert "".join([piece.text async for piece in end_at_stops(give(), ("STOP",))]) == "abcSTOO S"
