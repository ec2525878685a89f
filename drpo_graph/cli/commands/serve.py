"""``drpo serve``: vLLM's OpenAI-compatible server with our defaults."""

import os
import shlex
import sys
from functools import wraps

from drpo_graph.cli.model_server import RunningServer, run_server
from drpo_graph.cli.serve_request import SERVE_FOLDER, read_request
from drpo_graph.display.streams import write_lines
from drpo_graph.safety.installing import tell_command
from drpo_graph.serving.arguments import KEY_VARIABLE
from drpo_graph.serving.keys import borrow_key
from drpo_graph.storage.places import DEFAULT_CHECKPOINT

_LOOK_S = 0.5


@wraps(read_request)  # Its options and help.
def serve_command(**given: object) -> None:
    """Serve what is asked for until a signal comes."""
    request = read_request(**given)
    key = borrow_key(variable=request.flags.api_key_env, file=request.flags.api_key_file, environment=os.environ)
    folder = DEFAULT_CHECKPOINT.parent / SERVE_FOLDER
    with run_server(request, folder=folder, progress=sys.stderr, key=key, keeps_signals=True) as running:
        write_lines(sys.stdout, *_describe(running))
        while not running.requests.num:
            running.server.check(wait_s=_LOOK_S)
        write_lines(sys.stderr, "stopping the server; Ctrl-C again kills it")


def _describe(running: RunningServer) -> list[str]:
    """Return what a user needs to know of a server that answers."""
    plan, key = running.server.plan, running.key
    place = str(key.file.absolute()) if key.file is not None else f"environment variable {key.variable}"
    return [
        f"ready after {running.started_s:.0f} s: {plan.address.base_url}",
        f"model: {plan.model}",
        f"key: {place}",
        f"log: {plan.log_file}",
        f"use it: {_describe_use(running)}",
        "Ctrl-C stops it.",
    ]


def _describe_use(running: RunningServer) -> str:
    plan, key = running.server.plan, running.key
    words = [f"VLLM_BASE_URL={plan.address.base_url}"]
    if key.file is not None:
        words.append(f'{KEY_VARIABLE}="$(cat {shlex.quote(str(key.file.absolute()))})"')
    elif key.variable != KEY_VARIABLE:
        words.append(f'{KEY_VARIABLE}="${key.variable}"')
    return " ".join([*words, tell_command(f"drpo optimize --model {shlex.quote(f'vllm:{plan.model}')}")])
