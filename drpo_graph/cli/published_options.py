"""What the published code takes as parameters and ours says otherwise: as flags, and in settings files."""

import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar, get_args

import typer

from drpo_graph.cli.option_groups import FLAG, OptionGroup, SettingGroup, option
from drpo_graph.cli.options import LogLevel, Serving, Sources
from drpo_graph.errors import SettingsError
from drpo_graph.records import ROLES
from drpo_graph.settings.settings import Settings

_INTEGERS = ("num_gpus",)
_TRUTHS = ("disable_tqdm", "disable_log")


_Group = TypeVar("_Group", bound=OptionGroup)


class Published(SettingGroup, panel="Flags of the published code"):
    """What the published command line takes and ours says otherwise."""

    data_dir: str | None = option(None, "DIR", help="A dataset folder, as an argument would be.")
    is_gpt: bool | None = option(None, FLAG, help="Chat roles, or one flat prompt.", flag="--is-gpt/--no-is-gpt")
    base_model_family: str | None = option(None, "NAME", help="Accepted; not needed.")
    base_model_download_dir: str | None = option(None, "DIR", help="Serve the vllm:NAME with weights kept here.")
    cuda_visible_devices: str | None = option(None, "LIST", help="Serve the vllm:NAME on these GPUs, e.g. 0,1.")
    num_gpus: int | None = option(None, "N", help="Serve the vllm:NAME on as many GPUs.", at_least=1)
    disable_tqdm: bool = option(False, FLAG, help="No live panel.")

    def given(self) -> dict[str, object]:
        """Return the settings that the command line gives, by name."""
        return {} if self.is_gpt is None else {"base_prompt_format": "chat" if self.is_gpt else "flat"}


def fill_from_file(sources: Sources, group: _Group) -> _Group:
    """Return a group of options with what the settings file says, where the command line says nothing.

    Raises:
        SettingsError: a value in the file cannot be used.
    """
    filed = {name: _check(sources, name, value) for name, value in sources.run_values.items()}
    unset = {one.name for one in fields(group) if getattr(group, one.name) in (None, False)}
    return replace(group, **{name: value for name, value in filed.items() if name in unset and value is not None})


def note_unused(sources: Sources, *groups: OptionGroup) -> None:
    """Say what the settings file tells of how a run is done and a command that takes these groups does not do so.

    Raises:
        SettingsError: the file cannot be read or parsed.
    """
    unused = sorted(set(sources.run_values) - {one.name for group in groups for one in fields(group)})
    if unused:
        typer.echo(f"note: settings file {sources.config}: {', '.join(unused)}: not used by this command.", err=True)


def shape_serving(serving: Serving, published: Published, settings: Settings) -> tuple[Serving, str]:
    """Return how the roles' model is served: the published names start a server and shape it; and what to note of it.

    With a model that no server is started for, they mean nothing, as in the published code.
    """
    flag_by_name = {
        "base_model_download_dir": "--download-dir",
        "cuda_visible_devices": "--cuda-visible-devices",
        "num_gpus": "--num-gpus",
    }
    given = {name: value for name in flag_by_name if (value := getattr(published, name)) is not None}
    if not given:
        return serving, ""
    roles = (settings.role(role) for role in ROLES)
    if not any(role.model.startswith("vllm:") and not role.base_urls for role in roles):
        return serving, f"{', '.join(given)}: not used, as no role has a model vllm:NAME without a base URL."
    words = [word for name, value in given.items() for word in (flag_by_name[name], str(value))]
    # What is said in our own words comes last, and wins.
    options = " ".join([shlex.join(words), *([serving.serve_options] if serving.serve_options else [])])
    return replace(serving, serve=True, serve_options=options), ""


def _check(sources: Sources, name: str, value: object) -> object:
    """Return a value of the file."""
    expected = "a text"
    if name in _TRUTHS:
        expected, is_right = "true or false", isinstance(value, bool)
    elif name in _INTEGERS:
        expected = "a whole number from 1"
        is_right = isinstance(value, int) and not isinstance(value, bool) and value > 0
    elif name == "logging_level":
        expected = " or ".join(get_args(LogLevel))
        value = value.upper() if isinstance(value, str) else value
        is_right = value in get_args(LogLevel)
    else:
        value = str(value) if name == "cuda_visible_devices" and type(value) is int else value
        is_right = isinstance(value, str)
        value = Path(value) if name == "log_dir" and isinstance(value, str) else value
    if not is_right and value is not None:
        raise SettingsError(f"Settings file {sources.config}: {name}: expected {expected} (got {value!r}).")
    return value
