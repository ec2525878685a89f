"""Reward functions of the user's own: weights, a share for the critic, failures, names on the command line."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.calls.roles import Models
from drpo_graph.errors import FingerprintMismatchError, ReplyError, RewardError, SettingsError
from drpo_graph.parts.protocols import Reward
from drpo_graph.parts.rewards import CriticPart, MixedCritic, MixedReward, NamedReward, load_reward
from drpo_graph.prompts import load_prompts
from drpo_graph.records import Critique, MetricScore, MetricSelection, Query
from drpo_graph.runs.runner import RunOptions, optimize, resume
from drpo_graph.search.assembly import Parts, as_critic, build_components, build_context
from drpo_graph.search.estimate import Dataset, estimate_run
from drpo_graph.search.session import RunContext
from drpo_graph.settings.settings import Settings
from tests.support.command import Drpo, enter, read_result, serve, serve_world
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.scripted_app import ScriptedApp, scripted_settings

QUERY = Query(id="q", text="?")


async def five(query: Query, response: str) -> Reward:
    return Reward(score=5, feedback="splendid")


async def two(query: Query, response: str) -> Reward:
    return Reward(score=2)


class TwoMetrics:
    """A critic that counts how often it is asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def critique(self, query: Query, response: str, *, selection: MetricSelection, models: Models) -> Critique:
        self.num_asked += 1
        return Critique(scores=(MetricScore(metric="a", score=1), MetricScore(metric="b", score=3)))


async def ask(mixed: MixedReward, critic: TwoMetrics | None = None, *, timeout_s: float = 9) -> Critique:
    part = MixedCritic(mixed, critic, timeout_s)
    nothing = MetricSelection(metrics=())
    return await part.critique(QUERY, "r", selection=nothing, models=None)  # type: ignore[arg-type]


async def test_reward_is_the_weighted_mean_of_critic_and_functions() -> None:
    mixed = MixedReward(NamedReward(five, weight=3), two, weight=0.25)
    critique = await ask(mixed, TwoMetrics())
    assert critique.reward == pytest.approx(0.75 * 2 + 0.25 * (3 * 5 + 2) / 4)


async def test_weight_of_one_leaves_the_critic_out() -> None:
    critique = await ask(MixedReward(five, two, weight=1))
    assert critique.reward == pytest.approx(3.5)
    assert [(one.metric, one.rationale) for one in critique.scores] == [("five", "splendid"), ("two", "")]


async def test_equal_weights_are_the_plain_mean() -> None:
    scores = tuple(MetricScore(metric=str(one), score=one) for one in (1, 2, 4))
    assert Critique(scores=scores).reward == 7 / 3
    assert Critique(scores=()).reward is None


async def slow(query: Query, response: str) -> Reward:
    await asyncio.Event().wait()
    raise AssertionError


async def broken(query: Query, response: str) -> Reward:
    raise OSError("no judge")


async def hasty(query: Query, response: str) -> Reward:
    raise TimeoutError("its own")


async def beyond(query: Query, response: str) -> Reward:
    return Reward(score=float("nan"))


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (NamedReward(slow, timeout_s=0.01), "'slow': no answer within 0.01 s"),
        (NamedReward(broken, expects=(OSError,)), "'broken': OSError: no judge"),
        (NamedReward(hasty, expects=(TimeoutError,)), "'hasty': TimeoutError: its own"),
        (NamedReward(beyond), "'beyond' gave nan"),
    ],
)
async def test_declared_failure_leaves_the_response_unscored_and_spares_the_critic(
    reward: NamedReward, told: str
) -> None:
    critic = TwoMetrics()
    with pytest.raises(ReplyError, match=told) as caught:
        await ask(MixedReward(reward), critic)
    assert caught.value.kind == "reward_error"
    assert critic.num_asked == 0


async def test_function_in_the_critic_s_place_is_not_waited_for_for_ever() -> None:
    part = as_critic(slow, timeout_s=0.01)
    nothing = MetricSelection(metrics=())
    with pytest.raises(ReplyError, match=r"'slow': no answer within 0\.01 s"):
        await part.critique(QUERY, "r", selection=nothing, models=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [broken, hasty])
async def test_failure_that_nobody_declared_stops_the_run(function: CriticPart) -> None:
    with pytest.raises(RewardError, match=r"'(broken|hasty)' failed on query .*(no judge|its own).*resume"):
        await ask(MixedReward(function))  # type: ignore[arg-type]


def test_mix_that_makes_no_sense_is_refused() -> None:
    for build in (
        lambda: MixedReward(),
        lambda: MixedReward(five, five),
        lambda: MixedReward(five, weight=0),
        lambda: MixedReward(NamedReward(five, weight=-1)),
    ):
        with pytest.raises(SettingsError, match="MixedReward"):
            build()


def context_of(mixed: MixedReward) -> RunContext:
    return build_context(scripted_settings("http://127.0.0.1:9/v1"), critic=mixed)


def test_functions_and_weights_are_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    mixes = [
        MixedReward(five),
        MixedReward(two),
        MixedReward(five, weight=0.4),
        MixedReward(five, two),
        MixedReward(NamedReward(five, weight=2), two),
    ]
    assert len({context_of(one).fingerprints()["components"] for one in mixes}) == len(mixes)
    same = [context_of(MixedReward(five)).fingerprints() for _ in range(2)]
    assert same[0] == same[1]


def test_critic_s_model_is_needed_only_where_it_has_a_share() -> None:
    settings, prompts = Settings(), load_prompts()
    parts = [build_components(settings, prompts, Parts(critic=MixedReward(five, weight=one))) for one in (0.5, 1)]
    assert [type(one.selector).__name__ for one in parts] == ["LLMMetricSelector", "FixedMetrics"]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nothing", "expected module:function"),
        ("no_such_module:f", "cannot be loaded"),
        ("json:no_such_function", "cannot be loaded"),
        ("json:dumps", "expected `async def dumps"),
    ],
)
def test_function_that_cannot_be_loaded_is_told(spec: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_reward(spec)


def test_estimate_leaves_out_the_critic_where_it_is_not_asked() -> None:
    data = Dataset([QUERY])
    found = [
        estimate_run(Settings(**one), load_prompts(), data, is_worst=False).by_role
        for one in ({}, {"reward": "m:f"}, {"reward": "m:f", "reward_weight": 0.5})
    ]
    calls = [(one["metrics"].calls, one["critic"].calls, one["base"].calls) for one in found]
    assert calls[1] == (0, 0, calls[0][2])
    assert calls[0] == calls[2] > (0, 0, 0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    with serve(ScriptedApp(["Be kind and long."]), ServerOptions()) as server:
        yield server


async def test_unscored_responses_are_counted_with_their_reason_and_the_run_resumes(
    server: FakeServer, tmp_path: Path
) -> None:
    async def odd(query: Query, response: str) -> Reward:
        if query.id == "bad":
            raise ReplyError("cannot judge this", kind="reward_error")
        return Reward(score=3)

    options = RunOptions(checkpoint=tmp_path / "c.sqlite", writes_files=False)
    parts = Parts(critic=MixedReward(odd, weight=1))
    settings = scripted_settings(server.base_url, queries_per_level=2)
    queries = [QUERY, Query(id="bad", text="??")]
    result = await optimize(queries, settings=settings, options=options, parts=parts, thread_id="t")
    assert result.reward == 3
    assert result.failures_by_kind == {"reward_error": 2}
    assert await resume("t", options=options, parts=parts) == result
    with pytest.raises(FingerprintMismatchError, match="components"):
        await resume("t", options=options, parts=Parts(critic=MixedReward(odd, two, weight=1)))


def test_command_line_takes_reward_functions_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_rewards_for_test.py").write_text(
        "from drpo_graph import Reward\n\n\nasync def length(query, response):\n"
        "    return Reward(score=min(5, 1 + len(response) / 500))\n"
    )
    (tmp_path / "q.txt").write_text("Why?\nHow?\n")
    small = ("q.txt", "--model", "openai:world", "--depth", "2", "--n-actions", "1", "--beam-size", "1")
    run = ("--display", "none", "--thread-id")
    with serve_world() as world:
        enter(tmp_path, monkeypatch, world)
        drpo = Drpo(capsys)
        reward = ("--reward", "own_rewards_for_test:length")
        assert drpo("optimize", *small, *reward, *run, "alone").code == 0
        assert drpo("optimize", *small, *reward, "--reward-weight", "0.5", *run, "mixed").code == 0
        assert drpo("resume", "alone", *reward, "--display", "none").code == 0
        outcome = drpo("resume", "alone", "--display", "none")
        assert (outcome.code, "--reward own_rewards_for_test:length" in outcome.err) == (2, True)
        outcome = drpo("resume", "alone", "--reward", "json:dumps", "--display", "none")
        assert (outcome.code, "reward (was" in outcome.err) == (2, True)
        outcome = drpo("resume", "alone", *reward, "--set", "reward_weight=0.5", "--display", "none")
        assert (outcome.code, "reward_weight" in outcome.err) == (2, True)
        outcome = drpo("optimize", *small, "--reward", "own_rewards_for_test:none", *run, "wrong")
        assert (outcome.code, "cannot be loaded" in outcome.err) == (2, True)
    alone, mixed = (read_result(tmp_path / "drpo_runs", name) for name in ("alone", "mixed"))
    assert "critic" not in alone.usage_by_role
    assert "metrics" not in alone.usage_by_role
    assert mixed.usage_by_role["critic"].calls > 0


async def test_what_is_no_reward_leaves_the_response_unscored() -> None:
    async def odd(query: Query, response: str) -> Reward:
        return said  # type: ignore[return-value]

    for said in (True, "3", None, {"points": 3}):  # noqa: B007  # The function tells it.
        with pytest.raises(ReplyError, match=r"'odd' gave .*, expected a Reward or a number"):
            await ask(MixedReward(odd))
