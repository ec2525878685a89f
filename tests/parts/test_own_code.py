"""Code of the user's own that computes, waits or hangs: it holds up neither the run nor the end of the process."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from drpo_graph.errors import ReplyError, RewardError
from drpo_graph.inference import AlignedModel
from drpo_graph.inference.prompt_choice import RoutedPrompt
from drpo_graph.parts.checkers import as_checker, run_check
from drpo_graph.parts.choosers import PromptChoice
from drpo_graph.parts.loop_watch import LoopWatch
from drpo_graph.parts.own_code import MAX_LOST, MAX_THREADS, call_own
from drpo_graph.parts.protocols import Reward
from drpo_graph.parts.responders import OnePromptOfApp, ask_responder
from drpo_graph.parts.rewards import NamedReward, ask_reward
from drpo_graph.records import ICLExample, Query

QUERY = Query(id="q", text="?")


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets threads that hang end."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name.startswith("drpo: "):
            thread.join()


def reward(hang: Callable[[], object]) -> Coroutine[Any, Any, object]:
    def slow(query: Query, response: str) -> Reward:
        hang()
        return Reward(score=5)

    return ask_reward(NamedReward(slow, timeout_s=0.01), QUERY, "r", timeout_s=60)


def check(hang: Callable[[], object]) -> Coroutine[Any, Any, object]:
    def slow(query: Query, response: str, reference: str | None) -> float:
        hang()
        return 1.0

    return run_check(as_checker(slow), QUERY, "r", reference=None, timeout_s=0.01)


def app(hang: Callable[[], object]) -> Coroutine[Any, Any, object]:
    def slow(prompts: object, query: Query) -> str:
        hang()
        return "r"

    return ask_responder(OnePromptOfApp(slow, "main", {"main": "p"}), "p", QUERY, timeout_s=0.01)


def part(hang: Callable[[], object]) -> Coroutine[Any, Any, object]:
    return call_own(hang, called="the slow selector", timeout_s=0.01, is_bounded=False)


@pytest.mark.parametrize("ask", [reward, check, app, part])
async def test_code_that_blocks_is_given_up_in_time_by_name_and_holds_up_nothing(
    ask: Callable[[Callable[[], object]], Coroutine[Any, Any, object]], release: threading.Event
) -> None:
    has_begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang() -> None:
        loop.call_soon_threadsafe(has_begun.set)
        release.wait()

    asked = asyncio.create_task(ask(hang))  # type: ignore[arg-type]
    await has_begun.wait()
    with pytest.raises(ReplyError, match=r"(slow|the app).*: no answer within 0\.01 s"):
        await asked


async def test_code_that_is_not_asynchronous_sees_its_context_and_is_told_as_it_failed() -> None:
    def broken(query: Query, response: str) -> Reward:
        raise TimeoutError("its own")

    with pytest.raises(RewardError, match=r"'broken' failed on query 'q': TimeoutError: its own"):
        await ask_reward(NamedReward(broken), QUERY, "r", timeout_s=60)
    with pytest.raises(RewardError, match=r"SystemExit: 3"):
        await ask_reward(NamedReward(lambda query, response: sys.exit(3), "leaves"), QUERY, "r", timeout_s=60)
    with pytest.raises(ReplyError, match=r"TimeoutError: its own"):
        await ask_reward(NamedReward(broken, expects=(TimeoutError,)), QUERY, "r", timeout_s=60)


async def test_function_that_returns_something_to_be_awaited_is_awaited_on_the_loop() -> None:
    async def judge(query: Query, response: str) -> Reward:
        asyncio.get_running_loop()
        return Reward(score=4)

    found = await ask_reward(NamedReward(lambda query, response: judge(query, response)), QUERY, "r", timeout_s=60)
    assert found.score == 4


async def test_no_more_threads_run_than_there_are_places_and_those_that_wait_lose_no_time() -> None:
    running, most, lock = 0, 0, threading.Lock()
    is_full = threading.Event()

    def count() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == MAX_THREADS:
                is_full.set()
        is_full.wait(60)
        with lock:
            running -= 1

    await asyncio.gather(*(call_own(count, called="it", timeout_s=60) for _ in range(3 * MAX_THREADS)))
    assert most == MAX_THREADS


async def test_run_stops_when_too_many_threads_do_not_end_and_says_whose(release: threading.Event) -> None:
    for _ in range(MAX_LOST):
        with pytest.raises(ReplyError):
            await reward(release.wait)
    with pytest.raises(RewardError, match=r"of your own code go on beyond .* the reward function 'slow'"):
        await reward(release.wait)


async def test_asynchronous_code_that_blocks_the_loop_is_told_of_by_name_while_it_does() -> None:
    told, has_told = list[str](), threading.Event()

    def tell(message: str) -> None:
        told.append(message)
        has_told.set()

    async def blocks() -> bool:
        return has_told.wait(60)

    watch = LoopWatch(max_blocked_s=0.01, tell=tell)
    assert [await watch.watch(blocks(), "the reward function 'blocks'") for _ in range(2)] == [True, True]
    (message,) = told
    assert message.startswith("the reward function 'blocks' has blocked the event loop for ")


async def test_watched_code_awaits_fails_and_is_cancelled_as_it_would_be_unwatched() -> None:
    watch = LoopWatch()
    seen = list[str]()

    async def waits(for_what: "asyncio.Future[int]") -> int:
        try:
            return await for_what
        except ValueError as error:
            seen.append(str(error))
            raise
        finally:
            seen.append("ended")

    loop = asyncio.get_running_loop()
    good, bad, never = (loop.create_future() for _ in range(3))
    loop.call_soon(good.set_result, 7)
    loop.call_soon(bad.set_exception, ValueError("bad"))
    assert await watch.watch(waits(good), "it") == 7
    with pytest.raises(ValueError, match="bad"):
        await watch.watch(waits(bad), "it")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await watch.watch(waits(never), "it")
    assert seen == ["ended", "bad", "ended", "ended"]


_HANGS = """
import asyncio, threading
from drpo_graph.errors import ReplyError
from drpo_graph.parts.own_code import call_own

async def run():
    try:
        await call_own(threading.Event().wait, called="it", timeout_s=0.01)
    except ReplyError as error:
        print(error)

asyncio.run(run())
"""


def test_thread_that_never_ends_lets_the_process_end() -> None:
    ended = subprocess.run([sys.executable, "-c", _HANGS], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "it: no answer within 0.01 s\n"), ended.stderr


async def test_retriever_and_chooser_of_a_model_that_answers_may_be_plain_functions() -> None:
    class Here:
        best_prompt = "Be brief."

        def retrieve(self, query: str, *, k: int) -> list[ICLExample]:
            assert threading.current_thread() is not threading.main_thread()
            return [ICLExample(query="?", response="!")] * 3

        def choose(self, query: str) -> PromptChoice:
            raise AssertionError

        def achoose(self, query: str) -> PromptChoice:
            assert threading.current_thread() is not threading.main_thread()
            return PromptChoice(prompt=f"Be brief about {query}")

    here: Any = Here()
    model = AlignedModel(model="vllm:m", retriever=here, num_icl=2)
    assert len(await model.find_examples("tides")) == 2
    assert (await RoutedPrompt(here, "own").choose("tides")).text == "Be brief about tides"
