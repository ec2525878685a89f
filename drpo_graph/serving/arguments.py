"""From what the user asks for to vLLM's command line and environment. Pure: nothing is started or looked up."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from drpo_graph.errors import UsageError
from drpo_graph.safety.encryption import KEY_VARIABLE as ENCRYPTION_KEY
from drpo_graph.safety.encryption import LANGGRAPH_VARIABLE

MODULE = "vllm.entrypoints.openai.api_server"
"""Started with ``-m``: the script ``vllm`` looks for a distribution of that name, which builds for CPUs do not have."""

KEY_VARIABLE = "VLLM_API_KEY"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000

_SHORT_FLAGS = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-q": "--quantization"}
_REFUSED = {
    "--api-key": "every user of the machine can read a process list. Name a variable with --api-key-env, or a file "
    "with --api-key-file",
    "--model": "the model is the command's argument",
    "--uds": "a socket file has no URL to give to a run",
    "--ssl-certfile": "the server is asked over http. Put a proxy with a certificate before it",
    "--root-path": "the server is asked at its root. Put a proxy before it",
    "--headless": "such a server answers nothing. Start it with vLLM itself",
}
"""Flags of vLLM that cannot be passed through, and why."""
_OUR_KEYS = (ENCRYPTION_KEY, LANGGRAPH_VARIABLE)
_SECRET = re.compile(r"(API_?KEY|(^|_)ACCESS_KEY|(^|_)SECRET_KEY|(^|_)SECRET|(^|_)TOKEN|PASSWORD)$", re.I)
_SERVER_SECRET = re.compile(r"(HF|HUGGING_FACE|VLLM|AWS|MODELSCOPE|RAY)_|AZURE_CLIENT_SECRET$")
"""What fetches weights, and what nodes of a cluster show each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What to serve, and how."""

    model: str
    """A name on the Hugging Face hub, or a folder."""
    served_model_name: str | None = None
    """Name that requests use; ``model`` when absent."""
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    num_gpus: int | None = None
    """GPUs that share each layer (tensor parallel), on one node."""
    pipeline_parallel: int | None = None
    """Stages that the layers are divided into; one per node when absent."""
    num_nodes: int = 1
    distributed_executor_backend: str | None = None
    cuda_visible_devices: str | None = None
    gpu_memory_utilization: float | None = None
    """Share of each GPU's memory that the server may take, 0 to 1."""
    dtype: str = "auto"
    max_model_len: str | None = None
    """Tokens of context, also as vLLM writes them: ``8k``, ``auto``."""
    download_dir: str | None = None
    quantization: str | None = None
    vllm_arguments: tuple[str, ...] = ()
    """Passed through unchanged; they win over what is set here."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @property
    def own_host(self) -> str:
        """The host as this machine reaches it."""
        return {"0.0.0.0": DEFAULT_HOST, "": DEFAULT_HOST, "::": "::1"}.get(self.host, self.host)

    @property
    def base_url(self) -> str:
        """The API's URL as this machine reaches it."""
        return f"http://{f'[{self.own_host}]' if ':' in self.own_host else self.own_host}:{self.port}/v1"


def check_options(options: ServeOptions) -> None:
    """Do nothing when the options fit each other.

    Raises:
        UsageError: they do not, or a flag cannot be passed through.
    """
    passed = _read_flags(options.vllm_arguments)
    if options.vllm_arguments and not options.vllm_arguments[0].startswith("-"):
        raise UsageError(
            f"{options.vllm_arguments[0]!r}: one server serves one model; vLLM's own flags stand after --."
        )
    for flag, reason in _REFUSED.items():
        if flag in passed:
            raise UsageError(f"{flag} is not passed through: {reason}.")
    if options.num_nodes > 1 and options.distributed_executor_backend not in (None, "ray"):
        raise UsageError(
            f"--num-nodes {options.num_nodes} needs --distributed-executor-backend ray, "
            f"got {options.distributed_executor_backend!r}."
        )


def build_command(options: ServeOptions, python: str) -> list[str]:
    """Return the server's command line; of our flags, those that are passed through are left out."""
    passed = _read_flags(options.vllm_arguments)
    command = [python, "-m", MODULE]
    for flag, value in _list_flags(options):
        if not any(flag == other or flag.startswith(f"{other}.") for other in passed):
            command += [flag] if value is None else [flag, str(value)]
    return [*command, *options.vllm_arguments]


def build_environment(
    options: ServeOptions, inherited: Mapping[str, str], secrets: Collection[str] = ()
) -> dict[str, str]:
    """Return the server's environment but for its key: ours, without the secrets that are none of its business.

    Proxies and caches are its own, too, and so are tokens that fetch weights.

    Args:
        secrets: Variables with keys whose names do not tell it.
    """
    environment = {name: value for name, value in inherited.items() if not _is_withheld(name, secrets)}
    environment["PYTHONUNBUFFERED"] = "1"
    # Ours alone: vLLM warns of variables with its prefix that it does not know.
    environment.pop("VLLM_BASE_URL", None)
    if options.cuda_visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = options.cuda_visible_devices
    return environment


def find_address(options: ServeOptions) -> Address:
    """Return where the server will listen.

    Raises:
        UsageError: the port that is passed through is no number.
    """
    passed = _read_flags(options.vllm_arguments)
    port = passed.get("--port", str(options.port))
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--port {port}: expected a number from 1 to 65535.")
    return Address(passed.get("--host", options.host), int(port))


def find_served_name(options: ServeOptions) -> str:
    """Return the name under which requests find the model."""
    return _read_flags(options.vllm_arguments).get("--served-model-name", options.served_model_name or options.model)


def uses_ray(options: ServeOptions) -> bool:
    """Return whether the GPUs may be on other machines."""
    backend = _read_flags(options.vllm_arguments).get("--distributed-executor-backend", _choose_backend(options))
    return backend == "ray"


def _is_withheld(name: str, secrets: Collection[str]) -> bool:
    is_secret = name in _OUR_KEYS or name in secrets or _SECRET.search(name) is not None
    return is_secret and _SERVER_SECRET.match(name) is None


def _choose_backend(options: ServeOptions) -> str | None:
    return options.distributed_executor_backend or ("ray" if options.num_nodes > 1 else None)


def _list_flags(options: ServeOptions) -> list[tuple[str, str | int | float | None]]:
    """Return our flags and values; a flag with ``None`` stands alone."""
    # Tensor parallel inside a node, pipeline parallel between nodes: only the former needs fast links.
    stages = options.pipeline_parallel or (options.num_nodes if options.num_nodes > 1 else None)
    wanted: dict[str, str | int | float | None] = {
        "--model": options.model,
        "--served-model-name": options.served_model_name,
        "--host": options.host,
        "--port": options.port,
        "--dtype": options.dtype,
        "--tensor-parallel-size": options.num_gpus,
        "--pipeline-parallel-size": stages,
        "--distributed-executor-backend": _choose_backend(options),
        "--gpu-memory-utilization": options.gpu_memory_utilization,
        "--max-model-len": options.max_model_len,
        "--download-dir": options.download_dir,
        "--quantization": options.quantization,
        # JSON grammars allow white space without end, and small models fall into it. xgrammar: it can be told not to.
        "--structured-outputs-config.backend": "xgrammar",
        "--structured-outputs-config.disable_any_whitespace": "true",
    }
    flags = [(flag, value) for flag, value in wanted.items() if value is not None]
    return [*flags, ("--enable-prefix-caching", None), ("--enable-prompt-tokens-details", None)]


def _read_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Return the flags among vLLM's arguments, spelt as ours are, with the value that follows each, if any."""
    flags: dict[str, str] = {}
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        # vLLM takes underscores for dashes; a number may be negative.
        if not argument.startswith("-") or argument[1:2].isdigit():
            continue
        name, separator, value = argument.partition("=")
        place, dot, field = name.partition(".")
        place = _SHORT_FLAGS.get(place, place.replace("_", "-")).replace("--no-", "--", 1)
        name = place + dot + field.replace("-", "_")
        flags[name] = value if separator else "" if following.startswith("-") else following
    return flags
