"""Which vLLM an interpreter has, and when it is certain that there is no GPU for it."""

import os
import sys
from pathlib import Path

import pytest

from drpo_graph.errors import ServeError
from drpo_graph.serving.interpreter import Installation, check_gpu, find_vllm

PYTHON = Path(sys.executable)
CUDA, NO_CUDA = "'13.0'", "None"


def build_environment(folder: Path, version: str | None, cuda: str) -> dict[str, str]:
    """Return an environment whose vLLM says that it is of this version, beside a PyTorch built for this CUDA."""
    for name, text in (("vllm", ""), ("torch", "")):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    (folder / "torch" / "version.py").write_text(
        f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = None\n"
    )
    if version is not None:
        (folder / "vllm-0.dist-info").mkdir()
        (folder / "vllm-0.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        )
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("version", "cuda", "extra", "is_cuda_build"),
    [
        ("0.32.0", CUDA, {}, True),
        ("0.32.0", NO_CUDA, {}, False),
        ("0.32.0+cpu", CUDA, {}, False),
        ("0.32.0+rocm700", CUDA, {}, False),
        (None, CUDA, {}, False),
        ("0.32.0", CUDA, {"VLLM_TARGET_DEVICE": "cpu"}, False),
    ],
)
def test_only_what_is_certainly_built_for_cuda_counts_so(
    version: str | None, cuda: str, extra: dict[str, str], is_cuda_build: bool, tmp_path: Path
) -> None:
    environment = build_environment(tmp_path, version, cuda) | extra
    assert find_vllm(PYTHON, environment) == Installation(sys.executable, is_cuda_build)


def test_an_interpreter_without_vllm_is_told_with_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o700)
    with pytest.raises(ServeError, match=r"has no vLLM\. Run: pip install vllm .*--python"):
        find_vllm(bare, dict(os.environ))


@pytest.mark.parametrize("python", [Path("no/such/python"), Path("/bin/false"), Path("/")])
def test_what_is_no_interpreter_is_told(python: Path) -> None:
    with pytest.raises(ServeError, match=rf"--python {python}: "):
        find_vllm(python, dict(os.environ))


def test_a_build_for_cuda_without_any_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"no GPU.*nvidia-smi.*build for CPUs"):
        check_gpu(Installation("python", is_cuda_build=True), devices=tmp_path)
    check_gpu(Installation("python", is_cuda_build=False), devices=tmp_path)


@pytest.mark.parametrize("device", ["nvidia0", "nvidiactl", "kfd", "dri/renderD128", "dxg"])
def test_with_any_accelerator_vllm_is_left_to_tell(device: str, tmp_path: Path) -> None:
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    check_gpu(Installation("python", is_cuda_build=True), devices=tmp_path)
