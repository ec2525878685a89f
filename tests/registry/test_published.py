"""Published results give their prompt in each of their formats; what is missing is told; nothing is executed."""

import json
import os
import pickle
from pathlib import Path

import pytest

from drpo_graph.errors import UsageError
from drpo_graph.registry import read_published_prompt
from drpo_graph.registry.published import is_model_mapping, read_model_mapping

PUBLISHED = Path(__file__).resolve().parents[3] / "shared/data/drpo"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published data is not here")


@needs_published
@pytest.mark.parametrize("name", ["gpt-3.5-turbo", "llama2-7b", "mistral-7b-v0.1"])
def test_the_three_formats_hold_one_prompt(name: str) -> None:
    folder = PUBLISHED / name
    prompts = {read_published_prompt(folder / f"output.{one}") for one in ("pkl", "json", "txt")}
    assert prompts == {read_published_prompt(folder)}
    assert prompts == {(folder / "output.txt").read_text().strip()}


@needs_published
def test_the_published_mapping_gives_what_is_there_and_a_fault_for_the_rest() -> None:
    path = PUBLISHED / "model_mapping.json"
    prompts, faults = read_model_mapping(path)
    assert set(prompts) == {"gpt-3.5-turbo", "gpt-3.5-turbo-0125", "mistralai/Mistral-7B-v0.1"}
    missing = [one for one in json.loads(path.read_text()) if one not in prompts]
    assert [one.split(": ")[0] for one in faults] == missing


@pytest.mark.parametrize("place", ["data/one", "one", "results/data/one"])
def test_a_target_is_found_from_the_parent_or_the_folder(tmp_path: Path, place: str) -> None:
    mapping = tmp_path / ("data" if place == "data/one" else "results") / "model_mapping.json"
    folder = mapping.parent / "one" if place == "one" else tmp_path / place
    folder.mkdir(parents=True)
    (folder / "output.txt").write_text(" Be kind.\n")
    mapping.write_text(json.dumps({"m": "./data/one/output.txt"}))
    assert is_model_mapping(mapping)
    assert read_model_mapping(mapping) == ({"m": "Be kind."}, ())


@pytest.mark.parametrize("target", ["/etc/hostname", "../../secret.txt", "", 7, "x" * 5000, "a\0b", "data"])
def test_a_target_that_leads_elsewhere_is_a_fault(tmp_path: Path, target: object) -> None:
    mapping = tmp_path / "model_mapping.json"
    mapping.write_text(json.dumps({"m": target}))
    prompts, faults = read_model_mapping(mapping)
    assert not prompts
    assert len(faults) == 1
    assert faults[0].startswith("m: ")


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.victim),)


def test_a_hostile_pickle_does_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "made"
    (tmp_path / "output.pkl").write_bytes(pickle.dumps(Hostile(victim)))
    with pytest.raises(UsageError, match=r"output\.pkl"):
        read_published_prompt(tmp_path)
    assert not victim.exists()


def test_the_last_level_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    path = tmp_path / "output.json"
    path.write_text(json.dumps({"level 10": {"Prompt": "ten"}, "level 9": {"Prompt": "nine"}}))
    assert not is_model_mapping(path)
    assert read_published_prompt(path) == "ten"


def test_the_pickle_of_our_own_run_is_read(tmp_path: Path) -> None:
    (tmp_path / "algo_output").mkdir()
    content = {"result": {"system_prompt": "Ours."}, "tree": []}
    (tmp_path / "algo_output/output.pkl").write_bytes(pickle.dumps(content))
    assert read_published_prompt(tmp_path) == "Ours."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("output.json", b"{"),
        ("output.json", b"[" * 100_000),
        ("output.json", b"[]"),
        ("output.json", b'{"level 1": 3}'),
        ("output.txt", b" \n"),
        ("output.txt", b"\xff"),
        ("output.pkl", b"damaged"),
        ("output.pkl", pickle.dumps([1])),
        ("output.csv", b"a,b"),
    ],
)
def test_what_holds_no_prompt_is_told_with_its_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        read_published_prompt(tmp_path / name)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pkl", tmp_path / "none.txt"):
        with pytest.raises(UsageError, match=str(path)):
            read_published_prompt(path)


def test_a_link_out_of_the_mapping_s_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "given" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "output.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "model_mapping.json").write_text(json.dumps({"m": "output.txt"}))
    (folder / "inner").mkdir()
    (folder / "inner" / "output.txt").symlink_to(tmp_path / "secret.txt")
    for target in ("output.txt", "inner"):
        (folder / "model_mapping.json").write_text(json.dumps({"m": target}))
        prompts, (fault,) = read_model_mapping(folder / "model_mapping.json")
        assert not prompts
        assert "by a link" in fault


def test_a_mapping_with_a_wrong_entry_is_still_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "output.txt").write_text("Help.")
    for name in ("model_mapping.json", "other.json"):
        (tmp_path / name).write_text(json.dumps({"good": "output.txt", "bad": None}))
        assert is_model_mapping(tmp_path / name)
        prompts, (fault,) = read_model_mapping(tmp_path / name)
        assert prompts == {"good": "Help."}
        assert fault.startswith("bad: ")
    (tmp_path / "output.json").write_text(json.dumps({"level 0": {"Prompt": "Help."}}))
    assert not is_model_mapping(tmp_path / "output.json")
