"""``drpo models check``: what an endpoint can do, and whether a model is of use in each role."""

import asyncio
import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.inputs import read_overrides
from drpo_graph.cli.lazy_commands import Listed, group_of
from drpo_graph.cli.option_groups import FLAG, Only, option, takes_options
from drpo_graph.display.streams import quiet
from drpo_graph.errors import UnusableModelError, UsageError
from drpo_graph.models.capabilities import CapabilityCache
from drpo_graph.records import ROLES, Role
from drpo_graph.settings.layers import build_settings, merge_settings
from drpo_graph.settings.settings import Settings

if TYPE_CHECKING:
    from drpo_graph.cli.pages.models import Page
    from drpo_graph.models.clients import Endpoint

_TIMEOUT_S = 60.0
_DEFAULTS: dict[str, object] = {"timeout_s": _TIMEOUT_S, "max_retries": 2}
"""Less than a run's: somebody waits for the answer."""

_ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="provider:model, e.g. vllm:NAME or local:smollm2.")
]

COMMANDS = {
    "check": Listed(
        f"{__name__}:check_command",
        "Tell what an endpoint can do with MODEL, by a dozen small requests, and try it once in each role.",
    )
}

app = typer.Typer(cls=group_of(COMMANDS), no_args_is_help=False, add_completion=False)


@app.callback()
def _models() -> None:
    """Find out what models can do."""


@takes_options
def check_command(
    *,
    model: _ModelArgument,
    place: Annotated[flags.Models, Only("base_url", "api_key_env")],
    roles: list[str] | None = option(None, "ROLE", help="Only this role; may be given several times.", flag="--role"),
    sources: Annotated[flags.Sources, Only("overrides")],
    no_samples: bool = option(False, FLAG, help="Only what the endpoint can do: no sample of each role."),
    as_json: flags.JsonOption = False,
) -> None:
    """Tell what an endpoint can do with MODEL, by a dozen small requests, and try it once in each role.

    Each role is tried on one bundled query, with the templates, parsers and settings of a run, for at most 60 seconds
    (--set timeout_s=...). Exits with 1 where the endpoint or one of the roles cannot be used.
    """
    given = {"model": model, **place.given()}
    settings = build_settings(merge_settings(_DEFAULTS, given, read_overrides(sources.overrides)))
    for role in roles or ():
        if role not in ROLES:
            raise UsageError(f"--role {role}: expected one of {', '.join(ROLES)}.")
    chosen = tuple(role for role in ROLES if role in (roles or ROLES))
    asyncio.run(_check(model, settings, roles=chosen, has_samples=not no_samples, as_json=as_json))


async def _check(model: str, settings: Settings, *, roles: Sequence[Role], has_samples: bool, as_json: bool) -> None:
    from drpo_graph.cli.pages.models import Page
    from drpo_graph.runs.role_checks import check_roles  # Loads LangGraph: wrong usage is told before that.

    stdout = quiet(sys.stdout)
    # With --json the page is written for nobody.
    page = Page(io.StringIO() if as_json else stdout)
    endpoints = await _probe(settings, roles, page=page)
    if not endpoints:
        page.show_note("This provider's API is not OpenAI's: what its endpoint can do shows during a run.")
    checks = await check_roles(settings, roles, on_done=page.show_role) if has_samples else ()
    page.show_verdicts(checks)
    bad = [check.role for check in checks if not check.is_usable]
    if as_json:
        found = {
            "model": model,
            "is_usable": not bad,
            "endpoints": endpoints,
            "roles": [one.model_dump(mode="json") for one in checks],
        }
        stdout.write(f"{json.dumps(found, indent=2)}\n")
    stdout.flush()
    if bad:
        raise UnusableModelError(f"The model {model!r} is not usable as {' and '.join(bad)}.")


async def _probe(settings: Settings, roles: Sequence[Role], *, page: "Page") -> list[dict[str, object]]:
    """Ask each endpoint of the roles what it can do, show it, remember it for the runs to come, and return it for JSON.

    Raises:
        ModelCallError: one cannot be used at all.
    """
    from drpo_graph.calls.client_setup import patience_of
    from drpo_graph.models.clients import find_endpoints  # Loads LangChain.
    from drpo_graph.models.probing.probe import probe_endpoint

    roles_by_endpoint: dict[Endpoint, list[Role]] = {}
    for role in roles:
        for endpoint in find_endpoints(role, settings.role(role)):
            roles_by_endpoint.setdefault(endpoint, []).append(role)
    checks: list[dict[str, object]] = []
    cache = CapabilityCache()
    for (address, identity), served in roles_by_endpoint.items():
        patience = patience_of(settings, page.show_note)
        found = await probe_endpoint(address, timeout_s=min(settings.timeout_s, _TIMEOUT_S), patience=patience)
        cache.put(identity, address.name, capabilities=found)
        capabilities = {**found.model_dump(mode="json"), "first_rung": found.first_rung}
        checks.append({"url": address.place, "model": address.name, "roles": served, "capabilities": capabilities})
        page.show_endpoint(address.name, address.place, capabilities=found)
    return checks
