"""A registered prompt may have a router, of which the registry keeps a copy in its folder."""

import json
import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from drpo_graph.errors import UsageError
from drpo_graph.registry import PromptRegistry, RegisteredPrompt, render_prompt
from drpo_graph.registry.forms import describe_provenance

PROMPT = RegisteredPrompt(model="org/m", system_prompt="Best.")


@pytest.fixture
def registry(tmp_path: Path) -> PromptRegistry:
    return PromptRegistry(tmp_path / "prompts")


def write(path: Path, content: bytes = b"router") -> Path:
    path.write_bytes(content)
    return path


def test_router_is_copied_privately_and_found(registry: PromptRegistry, tmp_path: Path) -> None:
    given = write(tmp_path / "made.npz")
    kept = registry.add_router(PROMPT, given)
    given.unlink()
    found = registry.require("org/m")
    assert found.system_prompt == "Best."
    path = registry.find_router(found)
    assert path is not None
    assert (path.read_bytes(), path.parent) == (b"router", registry.folder / "routers")
    assert found.router == path.relative_to(registry.folder).as_posix()
    assert {stat.S_IMODE(one.stat().st_mode) for one in (kept, path)} == {0o600}
    assert registry.list() == (found,)


def test_later_router_replaces_the_former_whose_readers_go_on(registry: PromptRegistry, tmp_path: Path) -> None:
    paths = []
    for content in (b"one", b"two"):
        registry.add_router(PROMPT, write(tmp_path / "made.npz", content))
        paths.append(registry.find_router(registry.require("org/m")))
    one, two = paths
    assert one is not None
    assert two is not None
    assert (one.read_bytes(), two.read_bytes()) == (b"one", b"two")
    registry.add(PROMPT)
    assert registry.find_router(registry.require("org/m")) is None


def test_prompt_without_a_router_is_written_as_before(registry: PromptRegistry) -> None:
    written = json.loads(registry.add(PROMPT).read_text())
    assert "router" not in written
    assert "router" not in json.loads(render_prompt(PROMPT, "json"))
    assert not [line for line in describe_provenance(PROMPT) if "router" in line]


def test_provenance_and_json_tell_of_the_router() -> None:
    routed = PROMPT.model_copy(update={"router": "routers/r.npz"})
    assert "router: routers/r.npz" in list(describe_provenance(routed))
    assert json.loads(render_prompt(routed, "json"))["router"] == "routers/r.npz"
    assert render_prompt(routed, "txt") == "Best.\n"


@pytest.mark.parametrize(
    "router", ["", ".", "..", "/etc/passwd", "../r.npz", "routers/../../r.npz", "routers\\r.npz", "r\0.npz", "r\n.npz"]
)
def test_router_outside_of_the_folder_is_refused(registry: PromptRegistry, router: str) -> None:
    with pytest.raises(ValidationError, match="names no file in the registry's folder"):
        RegisteredPrompt(model="m", system_prompt="Best.", router=router)
    registry.folder.mkdir()
    (registry.folder / "m.json").write_text(json.dumps({"model": "m", "system_prompt": "Best.", "router": router}))
    with pytest.raises(UsageError, match="router: Value error, it names no file"):
        registry.find("m")


@pytest.mark.parametrize("is_folder", [False, True])
def test_link_out_of_the_folder_is_not_followed(registry: PromptRegistry, tmp_path: Path, is_folder: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "r.npz")
    registry.folder.mkdir()
    if is_folder:
        (registry.folder / "routers").symlink_to(tmp_path / "elsewhere")
    else:
        (registry.folder / "routers").mkdir()
        (registry.folder / "routers" / "r.npz").symlink_to(tmp_path / "elsewhere" / "r.npz")
    with pytest.raises(UsageError, match=r"there is no file 'routers/r\.npz'"):
        registry.find_router(PROMPT.model_copy(update={"router": "routers/r.npz"}))


def test_router_is_not_written_through_a_link(registry: PromptRegistry, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    registry.folder.mkdir()
    (registry.folder / "routers").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"):
        registry.add_router(PROMPT, write(tmp_path / "r.npz"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_missing_router_is_told(registry: PromptRegistry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.npz: No such file"):
        registry.add_router(PROMPT, tmp_path / "none.npz")
    assert registry.list() == ()
    with pytest.raises(UsageError, match="Register the router again"):
        registry.find_router(PROMPT.model_copy(update={"router": "routers"}))
