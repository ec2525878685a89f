"""From options to vLLM's command line and environment, table by table."""

from typing import Any

import pytest

from drpo_graph.errors import UsageError
from drpo_graph.serving.arguments import (
    Address,
    ServeOptions,
    build_command,
    build_environment,
    check_options,
    find_address,
    find_served_name,
    uses_ray,
)

DEFAULTS = [
    *("--model", "m", "--host", "127.0.0.1", "--port", "8000", "--dtype", "auto"),
    *("--structured-outputs-config.backend", "xgrammar"),
    *("--structured-outputs-config.disable_any_whitespace", "true"),
    *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
]


def flags_of(**options: Any) -> list[str]:
    command = build_command(ServeOptions(model="m", **options), "python")
    assert command[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    return command[3:]


def test_a_model_alone_gets_the_defaults() -> None:
    assert flags_of() == DEFAULTS


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"num_gpus": 4}, "--tensor-parallel-size 4"),
        ({"num_gpus": 8, "num_nodes": 2}, "--tensor-parallel-size 8 --pipeline-parallel-size 2 "
         "--distributed-executor-backend ray"),
        ({"num_nodes": 2, "pipeline_parallel": 4}, "--pipeline-parallel-size 4 --distributed-executor-backend ray"),
        ({"num_nodes": 2, "distributed_executor_backend": "ray"},
         "--pipeline-parallel-size 2 --distributed-executor-backend ray"),
        ({"distributed_executor_backend": "mp"}, "--distributed-executor-backend mp"),
        ({"pipeline_parallel": 2}, "--pipeline-parallel-size 2"),
        ({"gpu_memory_utilization": 0.8}, "--gpu-memory-utilization 0.8"),
        ({"max_model_len": "8k"}, "--max-model-len 8k"),
        ({"download_dir": "/data"}, "--download-dir /data"),
        ({"quantization": "awq"}, "--quantization awq"),
        ({"served_model_name": "short"}, "--served-model-name short"),
        ({"vllm_arguments": ("--enforce-eager",)}, "--enforce-eager"),
    ],
)  # fmt: skip
def test_each_option_adds_its_flags_and_changes_no_other(options: dict[str, object], added: str) -> None:
    flags = flags_of(**options)
    for word in DEFAULTS:
        flags.remove(word)
    assert " ".join(flags) == added


@pytest.mark.parametrize(
    ("passed", "left_out"),
    [
        (("--dtype", "float16"), ("--dtype", "auto")),
        (("--dtype=float16",), ("--dtype", "auto")),
        (("--port", "9000"), ("--port", "8000")),
        (("-q", "gptq"), ("--quantization", "awq")),
        (("-tp", "2"), ("--tensor-parallel-size", "4")),
        (("--tensor_parallel_size", "2"), ("--tensor-parallel-size", "4")),
        (("--no-enable-prefix-caching",), ("--enable-prefix-caching",)),
        (("--structured-outputs-config.backend", "guidance"), ("--structured-outputs-config.backend", "xgrammar")),
        (
            ("--structured-outputs-config", "{}"),
            (
                *("--structured-outputs-config.backend", "xgrammar"),
                *("--structured-outputs-config.disable_any_whitespace", "true"),
            ),
        ),
    ],
)
def test_a_flag_that_is_passed_through_wins_over_ours(passed: tuple[str, ...], left_out: tuple[str, ...]) -> None:
    options: dict[str, object] = {"num_gpus": 4, "quantization": "awq"}
    before, after = flags_of(**options), flags_of(**options, vllm_arguments=passed)
    at = before.index(left_out[0])
    assert tuple(before[at : at + len(left_out)]) == left_out
    assert after == [*before[:at], *before[at + len(left_out) :], *passed]


def test_passed_through_flags_stay_as_they_are() -> None:
    passed = ("--max-num-seqs", "64", "--override-generation-config", '{"a": -1}', "-O3", "--seed", "-5")
    assert flags_of(vllm_arguments=passed) == [*DEFAULTS, *passed]


@pytest.mark.parametrize(
    ("passed", "parts"),
    [
        (("--api-key", "secret"), ("--api-key-env", "process list")),
        (("--api_key=secret",), ("--api-key-env",)),
        (("--model", "other"), ("--model",)),
        (("--ssl-certfile", "x"), ("http",)),
        (("other-model",), ("'other-model'", "one model")),
    ],
)
def test_what_cannot_be_passed_through_is_told(passed: tuple[str, ...], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(ServeOptions(model="m", vllm_arguments=passed))
    assert all(part in str(caught.value) for part in parts)
    assert "secret" not in str(caught.value)


def test_nodes_without_ray_are_refused() -> None:
    with pytest.raises(UsageError, match="needs --distributed-executor-backend ray, got 'mp'"):
        check_options(ServeOptions(model="m", num_nodes=2, distributed_executor_backend="mp"))


@pytest.mark.parametrize(
    ("options", "is_on_ray"),
    [
        (ServeOptions(model="m", num_gpus=8), False),
        (ServeOptions(model="m", num_nodes=2), True),
        (ServeOptions(model="m", vllm_arguments=("--distributed-executor-backend", "ray")), True),
    ],
)
def test_only_ray_may_have_its_gpus_elsewhere(options: ServeOptions, is_on_ray: bool) -> None:
    assert uses_ray(options) is is_on_ray


@pytest.mark.parametrize(
    ("host", "passed", "url"),
    [
        ("127.0.0.1", (), "http://127.0.0.1:8000/v1"),
        ("0.0.0.0", (), "http://127.0.0.1:8000/v1"),
        ("::", (), "http://[::1]:8000/v1"),
        ("127.0.0.1", ("--port=9000", "--host", "10.0.0.5"), "http://10.0.0.5:9000/v1"),
    ],
)
def test_url_is_the_one_that_this_machine_reaches(host: str, passed: tuple[str, ...], url: str) -> None:
    assert find_address(ServeOptions(model="m", host=host, vllm_arguments=passed)).base_url == url


@pytest.mark.parametrize("port", ["0", "70000", "http"])
def test_a_port_that_is_none_is_told(port: str) -> None:
    with pytest.raises(UsageError, match=f"--port {port}: expected"):
        find_address(ServeOptions(model="m", vllm_arguments=("--port", port)))


def test_served_name_is_what_vllm_is_told_last() -> None:
    assert find_served_name(ServeOptions(model="m")) == "m"
    assert find_served_name(ServeOptions(model="m", served_model_name="n")) == "n"
    passed = ("--served_model_name", "o", "p")
    assert find_served_name(ServeOptions(model="m", served_model_name="n", vllm_arguments=passed)) == "o"
    assert Address("::1", 1).base_url == "http://[::1]:1/v1"


def test_environment_is_handed_on_with_the_chosen_devices() -> None:
    inherited = {"HF_TOKEN": "t", "HTTPS_PROXY": "p", "CUDA_VISIBLE_DEVICES": "7", "VLLM_BASE_URL": "u"}
    plain = build_environment(ServeOptions(model="m"), inherited)
    assert plain == {"HF_TOKEN": "t", "HTTPS_PROXY": "p", "CUDA_VISIBLE_DEVICES": "7", "PYTHONUNBUFFERED": "1"}
    chosen = build_environment(ServeOptions(model="m", cuda_visible_devices="0,1"), inherited)
    assert chosen == {**plain, "CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.mark.parametrize(
    ("name", "is_handed_on"),
    [
        *((name, False) for name in ("DRPO_ENCRYPTION_KEY", "LANGGRAPH_AES_KEY", "MY_CRITIC", "PGPASSWORD")),
        *((name, False) for name in ("OPENAI_API_KEY", "AZURE_OPENAI_APIKEY", "openai_api_key", "GITHUB_TOKEN")),
        *((name, False) for name in ("TOKEN", "CLIENT_SECRET", "DJANGO_SECRET_KEY", "MINIO_ACCESS_KEY", "DB_PASSWORD")),
        *(
            (name, True)
            for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        ),
        *((name, True) for name in ("VLLM_API_KEY", "MODELSCOPE_API_TOKEN", "RAY_AUTH_TOKEN", "AZURE_CLIENT_SECRET")),
        *((name, True) for name in ("HTTPS_PROXY", "PATH", "HF_HOME", "TOKENIZERS_PARALLELISM", "MONKEY", "HF_ROLE")),
    ],
)
def test_secrets_that_are_none_of_the_server_s_business_are_not_handed_on(name: str, is_handed_on: bool) -> None:
    environment = build_environment(ServeOptions(model="m"), {name: "canary"}, secrets=("MY_CRITIC", "HF_ROLE"))
    assert ("canary" in environment.values()) is is_handed_on
