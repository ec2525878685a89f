"""The interpreter whose environment has vLLM, and whether that vLLM can run on this machine."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drpo_graph.errors import ServeError

_TIMEOUT_S = 60.0
_PROBE = """
import importlib.metadata as metadata, importlib.util as util, json
names = {str(one.metadata["Name"]).lower(): one.version for one in metadata.distributions()}
torch = util.find_spec("torch")
print("\\n" + json.dumps({
    "has_vllm": getattr(util.find_spec("vllm"), "origin", None) is not None,
    "version": names.get("vllm", ""),
    "torch_version_file": f"{torch.submodule_search_locations[0]}/version.py" if torch else "",
    "has_plugins": bool(metadata.entry_points(group="vllm.platform_plugins")) or util.find_spec("libtpu") is not None,
}))
"""
"""Asks without importing either: PyTorch alone takes seconds."""

_INSTALL_HINT = (
    "Run: pip install vllm (https://docs.vllm.ai tells of other hardware), or name the interpreter of an environment "
    "that has it with --python."
)
_OTHER_BUILDS = ("cpu", "rocm", "xpu", "tpu", "hpu", "neuron")
_ACCELERATORS = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd", "accel*", "dri/render*")
"""Device files of NVIDIA's, AMD's, Intel's and other accelerators, under ``/dev``."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A vLLM and what it was built for, as far as its files tell."""

    python: str
    is_cuda_build: bool
    """Certainly: builds for CPUs and plug-ins for other hardware are not."""


def find_vllm(python: Path, environment: Mapping[str, str]) -> Installation:
    """Return the vLLM of an interpreter.

    Raises:
        ServeError: there is no such interpreter, it does not run, or it has no vLLM.
    """
    path = shutil.which(str(python.expanduser()), path=environment.get("PATH"))
    if path is None:
        raise ServeError(f"--python {python}: expected the file of a Python interpreter, e.g. .venv/bin/python.")
    try:
        done = subprocess.run(
            [path, "-c", _PROBE], env=dict(environment), capture_output=True, timeout=_TIMEOUT_S, check=True
        )
        facts = json.loads(done.stdout.splitlines()[-1])
        has_vllm = bool(facts["has_vllm"])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
        raise ServeError(f"--python {python}: it does not run as a Python interpreter does: {error}") from error
    if not has_vllm:
        raise ServeError(f"The environment of {path} has no vLLM. {_INSTALL_HINT}")
    version = str(facts["version"])
    is_other = facts["has_plugins"] or not version or any(one in version for one in _OTHER_BUILDS)
    is_other = is_other or environment.get("VLLM_TARGET_DEVICE", "cuda") != "cuda"
    return Installation(path, is_cuda_build=not is_other and _is_for_cuda(facts["torch_version_file"]))


def check_gpu(installation: Installation, *, devices: Path = Path("/dev")) -> None:
    """Do nothing unless it is certain that vLLM will find no GPU.

    Raises:
        ServeError: it was built for NVIDIA's GPUs, and this machine has no accelerator's device file.
    """
    is_jetson = Path("/etc/nv_tegra_release").exists()
    if not installation.is_cuda_build or os.name != "posix" or is_jetson:
        return
    if any(True for pattern in _ACCELERATORS for _ in devices.glob(pattern)):
        return
    raise ServeError(
        "This machine shows no GPU, and the vLLM of "
        f"{installation.python} is built for NVIDIA's. Make the GPU visible (nvidia-smi lists it; containers need "
        "--gpus all), or name an environment with vLLM's build for CPUs with --python."
    )


def _is_for_cuda(version_file: str) -> bool:
    """Return whether PyTorch says that it was built with CUDA."""
    try:
        text = Path(version_file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(r"^cuda\b[^=\n]*= *['\"]", text, re.MULTILINE) is not None
