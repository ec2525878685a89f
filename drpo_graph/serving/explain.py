"""What a server's log says about why it ended, in one line with what to do. Pure: texts in, a text out."""

import re

_MEMORY = "Take more GPUs with --num-gpus, a smaller model, or a quantised one"

# How vLLM, PyTorch or the Hugging Face hub word a failure, and what to say with the pattern's groups, the model and the
# port. The first that is found is told, so what has a cause of its own stands before what follows from it.
_CAUSES = (
    (
        r"Free memory on device.*?\((?P<free>[\d.]+)/(?P<all>[\d.]+) GiB\).*?desired GPU memory utilization "
        r"\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        "Of its GPU's {all} GiB, {free} are free, but {wanted} are wanted. End what else uses the GPU, choose another "
        "with --cuda-visible-devices, or lower --gpu-memory-utilization (now {share}).",
    ),
    (
        r"max seq len \((?P<wanted>\d+)\).*?larger than the available KV cache memory.*?"
        r"estimated maximum model length is (?P<possible>\d+)",
        "The memory left beside the weights does not hold a context of {wanted} tokens. Give --max-model-len "
        "{possible} or less, or raise --gpu-memory-utilization.",
    ),
    (
        r"max seq len \((?P<wanted>\d+)\).*?larger than the available KV cache memory",
        "The memory left beside the weights does not hold a context of {wanted} tokens. Lower --max-model-len, or "
        "raise --gpu-memory-utilization.",
    ),
    (
        r"No available memory for the cache blocks",
        "The weights leave no memory for the KV cache. Raise --gpu-memory-utilization (VLLM_CPU_KVCACHE_SPACE=GIB on a "
        f"CPU). {_MEMORY}.",
    ),
    (
        r"max_model_len \((?P<wanted>\d+)\) is greater than the derived max_model_len \(\w+=(?P<limit>[\d.]+)",
        "The model takes at most {limit} tokens. Lower --max-model-len (now {wanted}).",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory",
        f"The GPU's memory is too small. {_MEMORY}; or lower --max-model-len or --gpu-memory-utilization.",
    ),
    (
        r"GatedRepoError|gated repo|Access to model \S+ is restricted|Cannot access gated",
        "{model} is gated: accept its licence at https://huggingface.co/{model} and set HF_TOKEN.",
    ),
    (
        r"Quantization method specified in the model config \((?P<own>[\w-]+)\) does not match"
        r".*?\((?P<wanted>[\w-]+)\)",
        "The model is quantised with {own}, not with {wanted}. Leave --quantization out, or say {own}.",
    ),
    (
        r"Unknown quantization method: (?P<wanted>[\w-]+)|Invalid quantization method: (?P<other>[\w-]+)",
        "vLLM knows no such --quantization; its log lists what it knows. Leave it out: the model says how it was "
        "quantised.",
    ),
    (
        r"quantization method (?P<wanted>[\w-]+) is deprecated.*To bypass",
        "vLLM is about to drop the quantisation {wanted}. To use it still, add: -- --allow-deprecated-quantization",
    ),
    (
        r"Cannot find the config file for (?P<wanted>[\w-]+)|quantization method (?P<unsupported>[\w-]+) is not "
        r"supported for the current GPU|is not supported for quantization method (?P<typed>[\w-]+)",
        "The model, the GPU or --dtype does not fit this --quantization; the log says which. Leave it out if the model "
        "is not quantised.",
    ),
    (
        r"Bfloat16 is only supported on GPUs with compute capability",
        "The GPU is too old for bfloat16. Give --dtype float16.",
    ),
    (
        r"World size \((?P<wanted>\d+)\) is larger than the number of available GPUs \((?P<found>\d+)\)",
        "It needs {wanted} GPUs, and this node has {found}. Lower --num-gpus, or spread it with --num-nodes over Ray.",
    ),
    (
        r"Cannot provide a placement group|don't have enough GPUs available|Current node has no GPU available",
        "The Ray cluster has too few GPUs. `ray status` shows them; lower --num-gpus or --num-nodes.",
    ),
    (
        r"No module named 'ray'|Failed to import Ray",
        "Its environment lacks Ray. Run there: pip install ray",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver|libcuda\.so\.1: cannot open",
        "It found no GPU. Check nvidia-smi and --cuda-visible-devices; without a GPU, use vLLM's build for CPUs.",
    ),
    (
        r"address already in use|error while attempting to bind on address",
        "Port {port} is taken: give another --port.",
    ),
    (
        r"outgoing traffic has been disabled|LocalEntryNotFoundError|We couldn't connect to|Cannot reach https?://|"
        r"offline mode is enabled",
        "{model} is not on this machine, and the Hugging Face hub cannot be reached. Connect (HTTPS_PROXY and HF_TOKEN "
        "are passed on), or give the path of a folder.",
    ),
    (
        r"Repository Not Found|RepositoryNotFoundError|is not a local folder|Invalid repository ID or local directory|"
        r"HFValidationError|does not appear to have a file named config\.json|Cannot find any model weights|"
        r"no config file found",
        "There is no model {model}: neither a name on the Hugging Face hub nor a folder with config.json and weights. "
        "Check the spelling; private models need HF_TOKEN.",
    ),
    (
        r"error: (?P<what>unrecognized arguments: .*|argument \S+ .*)$",
        "vLLM does not take what it was given: {what}.",
    ),
)


def explain_failure(log: str, *, model: str, port: int) -> str | None:
    """Return why a server ended and what to do, or ``None`` when its log has nothing that is known."""
    for pattern, explanation in _CAUSES:
        found = re.search(pattern, log, re.IGNORECASE | re.MULTILINE)
        if found is not None:
            return explanation.format(**found.groupdict(default=""), model=model, port=port)
    return None
