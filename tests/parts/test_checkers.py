"""What checkers make of replies, odd ones above all."""

import asyncio
import sys
from pathlib import Path

import pytest

from drpo_graph.errors import ReplyError, RewardError, SettingsError
from drpo_graph.parts.checkers import Checker, as_checker, load_checker, names_own_code, run_check, to_outcome
from drpo_graph.records import Query

QUERY = Query(id="q", text="How many?")


async def check(spec: str, response: str, reference: str | None) -> float:
    return await run_check(load_checker(spec), QUERY, response, reference=reference, timeout_s=5)


@pytest.mark.parametrize(
    ("response", "reference", "is_right"),
    [
        ("So the answer is 72.", "Natalia sold 48+24 = 72 clips.\n#### 72", True),
        ("72 or 73", "72", False),
        ("I do not know.", "72", False),
        ("", "72", False),
        ("The total is 1,234.", "1234", True),
        ("It costs $1,234.50!", "1234.5", True),
        ("1 234", "234", True),
        ("1\u202f234 people", "1234", True),
        ("1'234'567", "1234567", True),
        ("1.234.567,5", "1234567.5", True),
        ("1.234.567", "1234567", True),
        ("1{,}234", "1234", True),
        ("x = -5", "-5", True),
        ("x = \u22125", "-5", True),
        ("-$5", "-5", True),
        ("$-5", "-5", True),
        ("pages 3-5", "5", True),
        ("x-5", "5", True),
        ("+5", "5", True),
        ("5", "-5", False),
        ("about 3/4 of it", "0.75", True),
        ("\\boxed{\\frac{3}{4}}", "3/4", True),
        ("1 3/4 cups", "1.75", True),
        ("2 5/4", "1.25", True),
        ("on 12/05/2020", "2020", True),
        ("5/0", "0", True),
        ("50%", "50", True),
        ("50 percent", "0.5", True),
        ("0.5", "50%", True),
        ("50%", "0.5%", False),
        ("\\$72\\%", "72", True),
        ("72.00", "72", True),
        ("72.0.", "72", True),
        ("72..", "72", True),
        (".5", "0.5", True),
        ("1.5e3", "1500", True),
        ("\\boxed{72}", "72", True),
        ("**72**", "72", True),
        ("72 (rounded to 2 decimals)", "72", False),
        ("2020,300", "300", True),
        ("9" * 5000, "9", False),
        ("1e999", "1", False),
        ("\uff17\uff12", "72", True),
        ("72\n\n", " 72 ", True),
    ],
)
async def test_last_number_of_the_reply_is_compared_with_that_of_the_reference(
    response: str, reference: str, is_right: bool
) -> None:
    assert await check("numeric", response, reference) == is_right


@pytest.mark.parametrize("text", ["1 " * 100_000, "9" * 300_000, "-" * 100_000, "1," * 100_000, "3/" * 100_000])
async def test_long_replies_are_read_once(text: str) -> None:
    async with asyncio.timeout(20):
        await check("numeric", text, "1")


@pytest.mark.parametrize(
    ("spec", "response", "reference", "is_right"),
    [
        ("exact", "  New\n York ", "new york", True),
        ("exact", "New York.", "new york", False),
        ("exact", "STRASSE", "stra\u00dfe", True),
        ("exact", "", "x", False),
        ("regex", "The answer: 42", r"answer:\s*42$", True),
        ("regex", "42 is it", r"^answer", False),
        (r"regex:(?i)paris", "It is PARIS.", None, True),
        (r"regex:^a:b$", "a:b", None, True),
        ("json", 'Here: {"a": [1, 2.0]} done', '{"a":[1.0,2]}', True),
        ("json", '```json\n{"b": 2, "a": 1}\n```', '{"a": 1, "b": 2}', True),
        ("json", '{"a": true}', '{"a": 1}', False),
        ("json", "[1] and [2]", "[2]", True),
        ("json", '{"a": {"b": [3]}}', "[3]", False),
        ("json", '{"a": 1', '{"a": 1}', False),
        ("json", "true", "true", True),
        ("json", '"x"', '"x"', True),
        ("json", "<think>[2]</think>[1]", "[2]", False),
        ("json", "", "null", False),
        ("json", "null", "null", True),
        ("json", "[" * 50_000, "[]", False),
        ("json", '{"a":' * 50_000, "{}", False),
    ],
)
async def test_other_checkers_judge_by_their_rule(spec: str, response: str, reference: str, is_right: bool) -> None:
    assert await check(spec, response, reference) == is_right


@pytest.mark.parametrize(
    ("spec", "reference", "fault"),
    [
        ("numeric", "none", "no number"),
        ("regex", "(", "no pattern"),
        ("json", "{a}", "no JSON"),
        ("exact", "anything", None),
    ],
)
def test_reference_that_cannot_be_compared_with_is_told(spec: str, reference: str, fault: str | None) -> None:
    find_fault = load_checker(spec).find_fault
    assert find_fault is not None
    found = find_fault(reference)
    assert found is None if fault is None else fault in (found or "")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("exactly", "numeric, exact, contains, regex"),
        ("regex:(", "no pattern"),
        ("no_such_module:f", "cannot be loaded"),
        ("json:f", "cannot be loaded"),
        (":f", "module:function"),
        ("json:loads", "async def loads(query, response, reference)"),
    ],
)
def test_spec_that_names_no_checker_is_refused(spec: str, said: str) -> None:
    with pytest.raises(SettingsError, match="Checker") as caught:
        load_checker(spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_own_function_is_loaded_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_checks.py").write_text(
        "async def halve(query, response, reference):\n    return len(response) / 2 / len(query.text)\n"
    )
    checker = load_checker("own_checks:halve")
    monkeypatch.delitem(sys.modules, "own_checks")
    assert checker.is_own
    assert await run_check(checker, QUERY, "a" * len(QUERY.text), reference=None, timeout_s=5) == 0.5


async def test_check_that_cannot_be_made_has_a_reason_and_no_outcome() -> None:
    async def fail(query: Query, response: str, reference: str | None) -> float:
        if response == "late":
            await asyncio.Event().wait()
        if response == "known":
            raise ValueError("not today")
        if response == "own":
            raise ReplyError("no judgement")
        if response == "bug":
            raise KeyError("x")
        return float(response)

    checker = Checker("mine", fail, expects=(ValueError,), timeout_s=0.01)
    for response, said in (("late", "within 0.01 s"), ("known", "not today"), ("own", "no judgement"), ("2", "gave 2")):
        with pytest.raises(ReplyError, match=said):
            await run_check(checker, QUERY, response, reference=None, timeout_s=5)
    with pytest.raises(RewardError, match=r"'mine' failed on query 'q': KeyError"):
        await run_check(checker, QUERY, "bug", reference=None, timeout_s=5)
    assert await run_check(checker, QUERY, "1", reference=None, timeout_s=5) == 1.0


def test_functions_and_checkers_are_taken_as_they_are() -> None:
    async def mine(query: Query, response: str, reference: str | None) -> float:
        return 1.0

    made = as_checker(mine)
    assert made.is_own
    assert made.spec.endswith("mine")
    assert as_checker(made) is made
    assert as_checker("critic").function is None
    assert as_checker(lambda query, response, reference: 1.0).is_own
    with pytest.raises(SettingsError, match="expected a function"):
        as_checker(1.0)  # type: ignore[arg-type]


def test_only_the_name_of_a_function_is_code_of_the_users() -> None:
    assert names_own_code("my_checks:is_right")
    assert not any(map(names_own_code, ("numeric", "exact", "regex", "regex:a:b", "json", "critic")))


def test_rewards_from_one_to_five_are_outcomes_from_zero_to_one() -> None:
    assert [to_outcome(reward) for reward in (1, 3, 5)] == [0, 0.5, 1]
