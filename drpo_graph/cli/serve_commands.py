"""``drpo serve``: vLLM's OpenAI-compatible server with our defaults."""

import os
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, TextIO

import typer

from drpo_graph.cli.model_server import RunningServer, ServeRequest, run_server
from drpo_graph.display.streams import quiet
from drpo_graph.errors import UsageError
from drpo_graph.serving import DEFAULT_HOST, DEFAULT_PORT, KEY_VARIABLE, ServeOptions, borrow_key
from drpo_graph.storage.places import DEFAULT_CHECKPOINT

SERVE_FOLDER = "serve"
"""Beside the checkpoint: keys and logs of servers."""

_MODEL = "Model"
_DEVICES = "Devices"
_SERVER = "Server"
_LOOK_S = 0.5
_Given = ParamSpec("_Given")

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name on the Hugging Face hub, or a folder.")]
VllmArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- FLAGS...", help="vLLM's own flags, passed through; they win over ours."),
]
ServedModelNameOption = Annotated[
    str | None,
    typer.Option("--served-model-name", metavar="NAME", help="What runs call it.", rich_help_panel=_MODEL),
]
DtypeOption = Annotated[
    str,
    typer.Option("--dtype", metavar="TYPE", help="auto, float16, bfloat16 or float32.", rich_help_panel=_MODEL),
]
QuantizationOption = Annotated[
    str | None,
    typer.Option("--quantization", metavar="KIND", help="awq, gptq, ...", rich_help_panel=_MODEL),
]
MaxModelLenOption = Annotated[
    str | None,
    typer.Option("--max-model-len", metavar="N", help="Tokens of context, e.g. 8192.", rich_help_panel=_MODEL),
]
DownloadDirOption = Annotated[
    str | None,
    typer.Option("--download-dir", metavar="DIR", help="Where weights are kept.", rich_help_panel=_MODEL),
]
NumGpusOption = Annotated[
    int | None,
    typer.Option(
        "--num-gpus", metavar="N", min=1, help="GPUs per node that share each layer.", rich_help_panel=_DEVICES
    ),
]
CudaVisibleDevicesOption = Annotated[
    str | None,
    typer.Option("--cuda-visible-devices", metavar="LIST", help="Which GPUs, e.g. 0,1.", rich_help_panel=_DEVICES),
]
GpuMemoryUtilizationOption = Annotated[
    float | None,
    typer.Option(
        "--gpu-memory-utilization",
        metavar="X",
        min=0.0,
        max=1.0,
        help="Share of each GPU's memory to take.",
        rich_help_panel=_DEVICES,
    ),
]
NumNodesOption = Annotated[
    int,
    typer.Option("--num-nodes", metavar="N", min=1, help="Nodes of a Ray cluster to use.", rich_help_panel=_DEVICES),
]
PipelineParallelOption = Annotated[
    int | None,
    typer.Option(
        "--pipeline-parallel",
        metavar="N",
        min=1,
        help="Stages of layers; one per node by default.",
        rich_help_panel=_DEVICES,
    ),
]
BackendOption = Annotated[
    Literal["ray", "mp"] | None,
    typer.Option(
        "--distributed-executor-backend",
        metavar="KIND",
        help="ray, or mp for the processes of one node.",
        rich_help_panel=_DEVICES,
    ),
]
HostOption = Annotated[
    str,
    typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 for all.", rich_help_panel=_SERVER),
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", metavar="N", help=f"{DEFAULT_PORT}; for --serve a free one.", rich_help_panel=_SERVER),
]
ServerKeyEnvOption = Annotated[
    str | None,
    typer.Option("--api-key-env", metavar="NAME", help="Environment variable with its key.", rich_help_panel=_SERVER),
]
ServerKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file", metavar="FILE", help="File with its key; a new one by default.", rich_help_panel=_SERVER
    ),
]
LogFileOption = Annotated[
    Path | None,
    typer.Option(
        "--log-file", metavar="FILE", help="Takes what vLLM says; in drpo_runs/serve.", rich_help_panel=_SERVER
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", metavar="S", min=1, help="Longest wait until it is ready.", rich_help_panel=_SERVER),
]
PythonOption = Annotated[
    Path,
    typer.Option(
        "--python",
        metavar="FILE",
        help="Interpreter that has vLLM; this one by default.",
        show_default=False,
        rich_help_panel=_SERVER,
    ),
]


def read_request(
    model: ModelArgument,
    vllm_arguments: VllmArgument = None,
    served_model_name: ServedModelNameOption = None,
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    max_model_len: MaxModelLenOption = None,
    download_dir: DownloadDirOption = None,
    num_gpus: NumGpusOption = None,
    cuda_visible_devices: CudaVisibleDevicesOption = None,
    gpu_memory_utilization: GpuMemoryUtilizationOption = None,
    num_nodes: NumNodesOption = 1,
    pipeline_parallel: PipelineParallelOption = None,
    distributed_executor_backend: BackendOption = None,
    host: HostOption = DEFAULT_HOST,
    port: PortOption = None,
    api_key_env: ServerKeyEnvOption = None,
    api_key_file: ServerKeyFileOption = None,
    log_file: LogFileOption = None,
    timeout: TimeoutOption = 1800.0,
    python: PythonOption = Path(sys.executable),
) -> ServeRequest:
    """Serve a model with vLLM until Ctrl-C, and say how a run uses it.

    The server listens on this machine alone and wants a key, which is made for it and kept in a file unless you name
    one. It caches prefixes, counts cached tokens and enforces JSON schemas without white space. What stands after --
    goes to vLLM unchanged.
    """
    options = ServeOptions(
        model=model,
        served_model_name=served_model_name,
        host=host,
        port=DEFAULT_PORT if port is None else port,
        num_gpus=num_gpus,
        pipeline_parallel=pipeline_parallel,
        num_nodes=num_nodes,
        distributed_executor_backend=distributed_executor_backend,
        cuda_visible_devices=cuda_visible_devices,
        gpu_memory_utilization=gpu_memory_utilization,
        dtype=dtype,
        max_model_len=max_model_len,
        download_dir=download_dir,
        quantization=quantization,
        vllm_arguments=tuple(vllm_arguments or ()),
    )
    return ServeRequest(
        options=options,
        has_own_port=port is not None,
        python=python,
        api_key_env=api_key_env,
        api_key_file=api_key_file,
        log_file=log_file,
        timeout_s=timeout,
    )


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


def _then(read: Callable[_Given, ServeRequest], act: Callable[[ServeRequest], None]) -> Callable[_Given, None]:
    """Return a command with the parameters and the help of ``read`` that does ``act``."""

    @wraps(read)
    def command(*given: _Given.args, **named: _Given.kwargs) -> None:
        act(read(*given, **named))

    return command


def _serve(request: ServeRequest) -> None:
    key = borrow_key(variable=request.api_key_env, file=request.api_key_file, environment=os.environ)
    folder = DEFAULT_CHECKPOINT.parent / SERVE_FOLDER
    with run_server(request, folder=folder, progress=sys.stderr, key=key, keeps_signals=True) as running:
        _say(sys.stdout, *_describe(running))
        while not running.requests.num:
            running.server.check(wait_s=_LOOK_S)
        _say(sys.stderr, "stopping the server; Ctrl-C again kills it")


serve_command = _then(read_request, _serve)


def _describe(running: RunningServer) -> list[str]:
    """Return what a user needs to know of a server that answers."""
    plan, key = running.server.plan, running.key
    place = str(key.file.absolute()) if key.file is not None else f"environment variable {key.variable}"
    lines = [
        f"ready after {running.started_s:.0f} s: {plan.address.base_url}",
        f"model: {plan.model}",
        f"key: {place}",
        f"log: {plan.log_file}",
        f"use it: {_describe_use(running)}",
    ]
    return [*lines, "Ctrl-C stops it."]


def _describe_use(running: RunningServer) -> str:
    plan, key = running.server.plan, running.key
    words = [f"VLLM_BASE_URL={plan.address.base_url}"]
    if key.file is not None:
        words.append(f'{KEY_VARIABLE}="$(cat {shlex.quote(str(key.file.absolute()))})"')
    elif key.variable != KEY_VARIABLE:
        words.append(f'{KEY_VARIABLE}="${key.variable}"')
    return " ".join([*words, "drpo optimize --model", shlex.quote(f"vllm:{plan.model}")])


def _say(stream: TextIO, *lines: str) -> None:
    shown = quiet(stream)
    shown.write("".join(f"{line}\n" for line in lines))
    shown.flush()
