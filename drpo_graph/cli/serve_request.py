"""What ``drpo serve`` may be asked for, as a command line and as the text of ``--serve-options``."""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from drpo_graph.cli.option_groups import OptionGroup, argument, option, takes_options
from drpo_graph.errors import UsageError
from drpo_graph.serving.arguments import DEFAULT_HOST, DEFAULT_PORT, ServeOptions

SERVE_FOLDER = "serve"
"""Beside the checkpoint: keys and logs of servers."""

_ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name on the Hugging Face hub, or a folder.")]


class _Model(OptionGroup, panel="Model"):
    """What of the model is served."""

    served_model_name: str | None = option(None, "NAME", help="What runs call it.")
    dtype: str = option("auto", "TYPE", help="auto, float16, bfloat16 or float32.")
    quantization: str | None = option(None, "KIND", help="awq, gptq, ...")
    max_model_len: str | None = option(None, "N", help="Tokens of context, e.g. 8192.")
    download_dir: str | None = option(None, "DIR", help="Where weights are kept.")


class _Devices(OptionGroup, panel="Devices"):
    """What it is served on."""

    num_gpus: int | None = option(None, "N", help="GPUs per node that share each layer.", at_least=1)
    cuda_visible_devices: str | None = option(None, "LIST", help="Which GPUs, e.g. 0,1.")
    gpu_memory_utilization: float | None = option(
        None, "X", help="Share of each GPU's memory to take.", at_least=0.0, at_most=1.0
    )
    num_nodes: int = option(1, "N", help="Nodes of a Ray cluster to use.", at_least=1)
    pipeline_parallel: int | None = option(None, "N", help="Stages of layers; one per node by default.", at_least=1)
    distributed_executor_backend: Literal["ray", "mp"] | None = option(
        None, "KIND", help="ray, or mp for the processes of one node."
    )


class ServerFlags(OptionGroup, panel="Server"):
    """Where it listens, and what it wants and writes."""

    host: str = option(DEFAULT_HOST, "ADDRESS", help="Where to listen; 0.0.0.0 for all.")
    port: int | None = option(None, "N", help=f"{DEFAULT_PORT}; for --serve a free one.")
    api_key_env: str | None = option(None, "NAME", help="Environment variable with its key.")
    api_key_file: Path | None = option(None, "FILE", help="File with its key; a new one by default.")
    log_file: Path | None = option(None, "FILE", help="Takes what vLLM says; in drpo_runs/serve.")
    timeout: float = option(1800.0, "S", help="Longest wait until it is ready.", at_least=1)
    python: Path = option(
        Path(sys.executable), "FILE", help="Interpreter that has vLLM; this one by default.", shows_default=False
    )


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What the user asks ``drpo serve`` for."""

    options: ServeOptions
    flags: ServerFlags
    """With the port as it was given, if it was."""


@takes_options
def read_request(
    *,
    model: _ModelArgument,
    vllm_arguments: list[str] | None = argument(
        None, "-- FLAGS...", help="vLLM's own flags, passed through; they win over ours."
    ),
    served: _Model,
    devices: _Devices,
    server: ServerFlags,
) -> ServeRequest:
    """Serve a model with vLLM until Ctrl-C, and say how a run uses it.

    The server listens on this machine alone and wants a key, which is made for it and kept in a file unless you name
    one. It caches prefixes, counts cached tokens and enforces JSON schemas without white space. What stands after --
    goes to vLLM unchanged.
    """
    options = ServeOptions(
        model=model,
        **asdict(served),
        **asdict(devices),
        host=server.host,
        port=DEFAULT_PORT if server.port is None else server.port,
        vllm_arguments=tuple(vllm_arguments or ()),
    )
    return ServeRequest(options, server)


def parse_serve_options(model: str, text: str) -> ServeRequest:
    """Return what ``drpo serve MODEL`` with these options would be asked for.

    Raises:
        UsageError: the text is not a command line's.
    """
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--serve-options {text!r}: {error}.") from error
    parser = typer.Typer(add_completion=False)
    parser.command()(read_request)
    command = typer.main.get_command(parser)
    request = command.main([model, *arguments], prog_name="drpo serve", standalone_mode=False)
    if not isinstance(request, ServeRequest):
        # It was asked for help, and gave it.
        raise typer.Exit
    return request
