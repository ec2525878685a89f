"""From what the user asks for to a server that can be started: what can be known to fail is told before."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from drpo_graph.errors import ServeError
from drpo_graph.serving.arguments import (
    ServeOptions,
    build_command,
    build_environment,
    check_options,
    find_address,
    find_served_name,
    uses_ray,
)
from drpo_graph.serving.interpreter import check_gpu, find_vllm
from drpo_graph.serving.process import ServerPlan


def plan_server(
    options: ServeOptions,
    *,
    python: Path,
    log_file: Path,
    inherited: Mapping[str, str],
    secrets: Collection[str] = (),
) -> ServerPlan:
    """Return what is needed to start a server.

    Args:
        secrets: Variables that the server is not given, besides those whose names tell that they hold secrets.

    Raises:
        UsageError: the options do not fit each other.
        ServeError: the model's folder, vLLM or a GPU is missing.
    """
    check_options(options)
    name, model = find_served_name(options), _find_model(options.model)
    options = replace(options, model=model, served_model_name=None if name == model else name)
    environment = build_environment(options, inherited, secrets)
    installation = find_vllm(python, environment)
    if not uses_ray(options):
        check_gpu(installation)
    return ServerPlan(
        command=build_command(options, installation.python),
        environment=environment,
        address=find_address(options),
        model=name,
        log_file=log_file,
    )


def _find_model(model: str) -> str:
    """Return the model with a home folder spelt out; a path must lead to something."""
    path = Path(model).expanduser()
    if model.startswith(("/", "./", "../", "~")) and not path.exists():
        raise ServeError(
            f"There is no model {model}: expected a folder with config.json and weights, or a name on the "
            "Hugging Face hub."
        )
    return str(path) if model.startswith("~") else model
