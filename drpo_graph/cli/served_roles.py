"""``--serve``: the server of a run's ``vllm:`` model, for as long as the run takes."""

import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from drpo_graph.cli.model_server import run_server
from drpo_graph.cli.serve_request import ServeRequest, parse_serve_options
from drpo_graph.errors import ModelCallError, UsageError
from drpo_graph.models.clients import build_clients
from drpo_graph.models.outages import never_ends
from drpo_graph.records import ROLES, Role
from drpo_graph.serving.arguments import KEY_VARIABLE
from drpo_graph.serving.keys import ServerKey, borrow_key
from drpo_graph.serving.process import find_free_port
from drpo_graph.settings.settings import RoleSettings, Settings

_URL_VARIABLE = "VLLM_BASE_URL"
_PROVIDER = "vllm:"
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class RoleServing:
    """How a run's model is served."""

    options: str
    """What ``drpo serve`` would be given after the model's name."""
    folder: Path
    """Where the server's log and key go."""
    progress: TextIO | None
    """Where its start is shown."""

    @property
    def flags(self) -> str:
        """What the command that resumes the run needs, to serve it again."""
        return " --serve" + (f" --serve-options {shlex.quote(self.options)}" if self.options else "")


@contextmanager
def serve_roles(
    settings: Settings, serving: RoleServing | None, *, optional: Collection[Role] = ()
) -> Iterator[Callable[[str], bool]]:
    """Serve the one ``vllm:`` model of the roles that name no server, until the block ends; nothing if not asked to.

    Yields whether the server at an endpoint has ended: a process that has died does not come back while a run waits.

    The roles find it by this process's environment, which is put back in the end: a stored run never names a server
    that has gone. Roles with a URL of their own keep it, and the optional ones need no model.

    Raises:
        UsageError: there is no such model, or there are several, or the roles name different keys.
        ServeError: the server cannot be started, or ended by itself.
    """
    if serving is None:
        yield never_ends
        return
    roles = _find_roles(settings)
    request = _read_request(roles[0].model.removeprefix(_PROVIDER), serving.options)
    key = _find_key(roles, request)
    # What is wrong with another role's model is told before a start that takes minutes.
    build_clients(settings, optional=optional)
    withheld = {settings.role(role).api_key_env or "" for role in ROLES}
    with run_server(request, folder=serving.folder, progress=serving.progress, key=key, withheld=withheld) as running:
        server, url = running.server, running.server.plan.address.base_url
        with _environment({_URL_VARIABLE: url, KEY_VARIABLE: running.key.value}):
            try:
                yield lambda endpoint: endpoint == url and not server.is_running
            except ModelCallError:
                # A call may fail a moment before the end of the process is known.
                server.check(wait_s=_LOOK_S)
                raise


def _find_roles(settings: Settings) -> list[RoleSettings]:
    """Return the roles that the server is for: all have the same model."""
    roles = [settings.role(role) for role in ROLES]
    served = [role for role in roles if role.model.startswith(_PROVIDER) and not role.base_urls]
    models = sorted({role.model for role in served})
    if not models:
        raise UsageError("--serve: no role has a model vllm:NAME without a base URL. Give e.g. --base-model vllm:NAME.")
    if len(models) > 1:
        raise UsageError(
            f"A run's server has one model, and the roles have {len(models)}: {', '.join(models)}. Start the others "
            "with `drpo serve` and give these roles a base URL, e.g. --set critic.base_url=URL."
        )
    return served


def _read_request(model: str, options: str) -> ServeRequest:
    request = parse_serve_options(model, options)
    if request.options.served_model_name is not None:
        raise UsageError(f"--serve-options: the run asks for {model!r}; leave --served-model-name out.")
    if request.flags.port is not None:
        return request
    port = find_free_port(request.options.host)
    return replace(request, options=replace(request.options, port=port))


def _find_key(roles: list[RoleSettings], request: ServeRequest) -> ServerKey | None:
    """Return the key that all roles will send, or ``None`` where a new one will do."""
    named = {role.api_key_env or KEY_VARIABLE for role in roles}
    if not os.environ.get(KEY_VARIABLE):
        named.discard(KEY_VARIABLE)
    own = borrow_key(variable=request.flags.api_key_env, file=request.flags.api_key_file, environment=os.environ)
    found = [borrow_key(variable=name, file=None, environment=os.environ) for name in sorted(named)]
    keys = {key.value: key for key in (own, *found) if key is not None}
    if len(keys) > 1:
        raise UsageError(
            f"A run's server takes one key, but {', '.join(sorted(named))}"
            f"{' and --serve-options' if own else ''} hold different ones. Name the same key, or unset {KEY_VARIABLE}."
        )
    return next(iter(keys.values()), None)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process for as long as the block lasts."""
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
