"""vLLM's own words about why it ended, and ours."""

import pytest

from drpo_graph.serving.explain import explain_failure

PREFIX = "(EngineCore pid=77) ERROR 09-28 15:47:24 [core.py:718] "
MEMORY_FLAGS = ("--gpu-memory-utilization", "--num-gpus")
CASES = {
    "gpu shared": (
        "ValueError: Free memory on device cuda:0 (31.44/47.38 GiB) on startup is less than desired GPU memory "
        "utilization (0.95, 45.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        ("47.38 GiB, 31.44 are free", "45.01", "--gpu-memory-utilization (now 0.95)", "--cuda-visible-devices"),
    ),
    "context too long for the cache": (
        "ValueError: To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (3.10 GiB). Based on the available memory, the "
        "estimated maximum model length is 25376. Try increasing `gpu_memory_utilization`",
        ("131072", "--max-model-len 25376"),
    ),
    "context too long, no estimate": (
        "ValueError: To serve at least one request with the model's max seq len (4096), (16.00 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (0.01 GiB). Try increasing",
        ("4096", "Lower --max-model-len"),
    ),
    "no room for the cache": (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine",
        ("KV cache", "VLLM_CPU_KVCACHE_SPACE", *MEMORY_FLAGS),
    ),
    "context longer than the model's": (
        "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len "
        "(max_position_embeddings=8192 or model_max_length=None in model's config.json). To allow overriding",
        ("at most 8192 tokens", "--max-model-len (now 99999)"),
    ),
    "out of memory": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total capacity of",
        ("too small", "--num-gpus", "--max-model-len"),
    ),
    "gated": (
        "OSError: You are trying to access a gated repo.\nMake sure to have access to it at "
        "https://huggingface.co/org/model.\n401 Client Error.",
        ("gated", "https://huggingface.co/org/model", "HF_TOKEN"),
    ),
    "other quantisation": (
        "Value error, Quantization method specified in the model config (gptq) does not match the quantization "
        "method specified in the `quantization` argument (awq).",
        ("quantised with gptq, not with awq", "--quantization"),
    ),
    "unknown quantisation": (
        "Value error, Unknown quantization method: awk. Must be one of ['awq', 'fp8'].",
        ("no such --quantization",),
    ),
    "dropped quantisation": (
        "ValueError: The quantization method tpu_int8 is deprecated and will be removed in future versions of vLLM. "
        "To bypass, set `--allow-deprecated-quantization`.",
        ("tpu_int8", "-- --allow-deprecated-quantization"),
    ),
    "not quantised": ("ValueError: Cannot find the config file for awq", ("does not fit", "--quantization")),
    "old gpu": (
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
        ("--dtype float16",),
    ),
    "too few gpus": (
        "Value error, World size (8) is larger than the number of available GPUs (2) in this node. If this is",
        ("needs 8 GPUs", "has 2", "--num-gpus", "--num-nodes"),
    ),
    "too small a cluster": (
        "ValueError: Cannot provide a placement group requiring 16 GPUs (placement_group_specs=[]) within 1800 seconds",
        ("Ray cluster", "ray status"),
    ),
    "no ray": ("ImportError: Failed to import Ray: No module named 'ray'.Please install Ray", ("pip install ray",)),
    "no device": (
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        ("no GPU", "nvidia-smi", "CPU"),
    ),
    "port": ("OSError: [Errno 98] Address already in use", ("Port 8000 is taken", "--port")),
    "offline": (
        "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models/org/model: "
        "offline mode is enabled.\nValueError: Invalid repository ID or local directory specified: 'org/model'.",
        ("cannot be reached", "HTTPS_PROXY"),
    ),
    "no such model": (
        "Repository Not Found for url: https://huggingface.co/api/models/org/model.\nPlease make sure you specified "
        "the correct `repo_id`\nValueError: Invalid repository ID or local directory specified: 'org/model'.",
        ("no model org/model", "HF_TOKEN", "folder"),
    ),
    "no weights": ("RuntimeError: Cannot find any model weights with `/models/x`", ("folder", "weights")),
    "unknown flag": (
        "api_server.py: error: unrecognized arguments: --frobnicate 3",
        ("does not take", "unrecognized arguments: --frobnicate 3"),
    ),
}


@pytest.mark.parametrize(("log", "parts"), CASES.values(), ids=CASES)
def test_known_failure_is_one_line_with_what_to_do(log: str, parts: tuple[str, ...]) -> None:
    lines = [f"{PREFIX}{line}" for line in ["Traceback (most recent call last):", *log.split("\n")]]
    explanation = explain_failure(
        "\n".join([*lines, "RuntimeError: Engine core initialization failed."]), model="org/model", port=8000
    )
    assert explanation is not None
    assert "\n" not in explanation
    assert "{" not in explanation
    missing = [part for part in parts if part not in explanation]
    assert not missing, explanation


@pytest.mark.parametrize(
    "log",
    [
        "",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "WARNING Tensor parallel size (8) exceeds available GPUs (4). This may result in Ray placement group",
        "WARNING The quantization method fbgemm_fp8 is deprecated and will be removed in future versions of vLLM.",
        "INFO non-default args: {'gpu_memory_utilization': 0.95, 'max_model_len': 4096, 'quantization': 'awq'}",
    ],
)
def test_what_is_no_cause_is_not_explained(log: str) -> None:
    assert explain_failure(log, model="m", port=8000) is None
