"""Several prompts of one app: each has its turn while the others stay, and the whole goes on where it was stopped."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from drpo_graph.errors import DRPOError, FingerprintMismatchError, ReplyError, UsageError
from drpo_graph.parts.protocols import Reward
from drpo_graph.parts.responders import OnePromptOfApp, ask_responder
from drpo_graph.records import Query
from drpo_graph.runs.app_prompts import PromptsResult, optimize_prompts
from drpo_graph.runs.forks import fork
from drpo_graph.runs.runner import RunOptions, optimize
from drpo_graph.search.assembly import Parts
from tests.support.command import serve
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.scripted_app import ScriptedApp, scripted_settings

PROMPTS = {"plan": "Plan for {user}.", "write": "Write."}
REWRITES = ["Plan well for {user}.", "Write well."]


class Lost(Exception):
    """The app's process is gone."""


class App:
    """Answers with its prompts; may be told to fail once it has answered so often."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.calls_left: int | None = None

    async def __call__(self, prompts: Mapping[str, str], query: Query) -> str:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Lost
        self.asked.append((prompts["plan"], prompts["write"], query.text))
        return " | ".join(prompts.values())


async def by_length(query: Query, response: str) -> Reward:
    return Reward(score=min(4.4, 1 + len(response) / 20))


@pytest.fixture
def model() -> ScriptedApp:
    return ScriptedApp(REWRITES)


@pytest.fixture
def server(model: ScriptedApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    with serve(model, ServerOptions()) as server:
        yield server


async def run(server: FakeServer, folder: Path, app: App, **values: object) -> PromptsResult:
    given = {"prompts": PROMPTS, "rounds": 1, "queries": ["Why?", "How?"], **values}
    prompts, rounds, queries = given["prompts"], given["rounds"], given["queries"]
    assert isinstance(prompts, dict)
    assert isinstance(rounds, int)
    assert isinstance(queries, list)
    return await optimize_prompts(
        prompts,
        respond=app,
        queries=queries,
        settings=scripted_settings(server.base_url, queries_per_level=2, placeholders="auto"),
        thread_id="app",
        rounds=rounds,
        options=RunOptions(checkpoint=folder / "c.sqlite", writes_files=False),
        parts=Parts(critic=by_length),
    )


async def test_each_prompt_has_its_turn_while_the_others_stay(
    server: FakeServer, model: ScriptedApp, tmp_path: Path
) -> None:
    app = App()
    result = await run(server, tmp_path, app)
    assert result.prompts == {"plan": REWRITES[0], "write": REWRITES[1]}
    assert result.initial_prompts == PROMPTS
    assert [one.thread_id for one in result.runs] == ["app-1-plan", "app-1-write"]
    tried = list(dict.fromkeys((plan, write) for plan, write, _ in app.asked))
    assert tried == [("Plan for {user}.", "Write."), (REWRITES[0], "Write."), (REWRITES[0], REWRITES[1])]
    # The app is in the base model's place.
    assert model.asked == []


async def test_round_that_changes_nothing_is_the_last(server: FakeServer, model: ScriptedApp, tmp_path: Path) -> None:
    model.rewrites = [*REWRITES, REWRITES[0], REWRITES[1]]
    result = await run(server, tmp_path, App(), rounds=9)
    assert result.prompts == {"plan": REWRITES[0], "write": REWRITES[1]}
    assert result.rounds == 2
    assert len(result.runs) == 4


@pytest.mark.parametrize("num_calls", [1, 5])
async def test_stopped_work_goes_on_without_asking_the_app_again(
    num_calls: int, server: FakeServer, model: ScriptedApp, tmp_path: Path
) -> None:
    whole, app = App(), App()
    expected = await run(server, tmp_path / "whole", whole)
    model.optimizer_requests.clear()
    app.calls_left = num_calls
    with pytest.raises(Lost):
        await run(server, tmp_path / "broken", app)
    app.calls_left = None
    assert await run(server, tmp_path / "broken", app) == expected
    assert sorted(app.asked) == sorted(whole.asked)
    num_asked = len(app.asked)
    assert await run(server, tmp_path / "broken", app) == expected
    assert len(app.asked) == num_asked


async def test_app_is_asked_no_more_often_at_once_than_the_settings_say(server: FakeServer, tmp_path: Path) -> None:
    class Counting(App):
        now = most = 0

        async def __call__(self, prompts: Mapping[str, str], query: Query) -> str:
            self.now += 1
            self.most = max(self.most, self.now)
            for _ in range(3):
                await asyncio.sleep(0)
            self.now -= 1
            return await super().__call__(prompts, query)

    app = Counting()
    settings = scripted_settings(server.base_url, queries_per_level=6, max_concurrency=2)
    options, parts = RunOptions(checkpoint=tmp_path / "c.sqlite", writes_files=False), Parts(critic=by_length)
    queries = [f"Why {number}?" for number in range(6)]
    await optimize_prompts(PROMPTS, respond=app, queries=queries, settings=settings, options=options, parts=parts)
    assert app.most == 2


async def test_late_response_is_none() -> None:
    async def late(prompts: Mapping[str, str], query: Query) -> str:
        if query.id == "late":
            await asyncio.Event().wait()
        return "here"

    responder = OnePromptOfApp(late, "a", {"a": "A prompt."})
    assert await ask_responder(responder, "p", Query(id="q", text="?"), timeout_s=9) == "here"
    with pytest.raises(ReplyError, match=r"'late': the app: no answer within 0.01 s") as caught:
        await ask_responder(responder, "p", Query(id="late", text="?"), timeout_s=0.01)
    assert caught.value.kind == "unavailable"


async def test_work_of_other_prompts_is_not_gone_on_with(server: FakeServer, tmp_path: Path) -> None:
    await run(server, tmp_path, App())
    with pytest.raises(FingerprintMismatchError):
        await run(server, tmp_path, App(), prompts={**PROMPTS, "write": "Draw."})
    with pytest.raises(FingerprintMismatchError):
        await run(server, tmp_path, App(), queries=["Who?"])


async def test_query_without_a_response_is_unscored_with_its_reason(server: FakeServer, tmp_path: Path) -> None:
    class Moody(App):
        async def __call__(self, prompts: Mapping[str, str], query: Query) -> str:
            if query.text == "Why?":
                raise ReplyError("no idea", kind="refused")
            return " " if query.text == "How?" else await super().__call__(prompts, query)

    result = await run(server, tmp_path, Moody(), queries=["Why?", "How?", "Who?", "When?"])
    kinds = {kind for one in result.runs for kind in one.failures_by_kind}
    assert kinds <= {"refused", "empty"}
    assert all(one.reward is not None for one in result.runs)


@pytest.mark.parametrize(
    ("values", "told"),
    [({"prompts": {}}, "at least one prompt"), ({"rounds": 0}, "one round"), ({"prompts": {"a": " "}}, "blank")],
)
async def test_app_without_prompts_is_refused(
    values: dict[str, object], told: str, server: FakeServer, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        await run(server, tmp_path, App(), **values)
    with pytest.raises(DRPOError):
        await run(server, tmp_path, App(), prompts={"a/../b": "x"})


class Plain:
    """An app with one prompt."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.num_asked = 0

    async def respond(self, prompt: str, query: Query) -> str:
        self.num_asked += 1
        return f"{prompt} {self.identity}"


async def test_fork_with_another_app_asks_that_one(server: FakeServer, tmp_path: Path) -> None:
    options = RunOptions(checkpoint=tmp_path / "c.sqlite", writes_files=False)
    settings = scripted_settings(server.base_url, queries_per_level=1, initial_prompt="Write.", depth=3)
    apps = [Plain("old"), Plain("old"), Plain("another")]
    parts = [Parts(critic=by_length, responder=one) for one in apps]
    await optimize(["Why?", "How?"], settings=settings, thread_id="t", options=options, parts=parts[0])
    assert apps[0].num_asked
    # The same app has answered; another one has not.
    await fork("t", level=0, new_id="f", options=options, parts=parts[1])
    assert apps[1].num_asked == 0
    await fork("t", level=0, new_id="g", options=options, parts=parts[2])
    assert apps[2].num_asked
