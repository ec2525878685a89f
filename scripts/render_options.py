"""Write docs/options.md: every setting with its flag, default and meaning, as the code has them.

python scripts/render_options.py
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from drpo_graph.cli.app import app
from drpo_graph.records import ROLES
from drpo_graph.settings.settings import RoleSettings, Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"
_ROLE_FLAGS = {
    "model": "--model, --base-model, --metrics-model, --critic-model, --optimizer-model",
    "base_url": "--base-url",
    "api_key_env": "--api-key-env",
    "temperature": "--temperature (the optimizer's)",
}
_INTRODUCTION = """\
# Options

Every setting of a search; `drpo optimize --help` lists the flags by theme. A setting without a flag is given as
`--set NAME=VALUE`, any setting also in a file (`--config`, TOML or JSON, like
[examples/demo.toml](../examples/demo.toml)) or from Python (`build_settings`). Later ones win: defaults, `--config`,
flags, `--set`. The parameters of the published code are taken under their own names:
[from_published.md](from_published.md).
"""
_ROLES = """\

## Of each role

`--set critic.max_tokens=1024`, or `[critic]` in a settings file; the roles are `base`, `metrics`, `critic` and
`optimizer`. A flag without a role's name is for all roles.
"""


def main() -> int:
    """Write the page."""
    PAGE.write_text(render_page(), encoding="utf-8")
    return 0


def render_page() -> str:
    """Return the page."""
    # The search's own before what other rooms bring along.
    names = [one for one in dict.fromkeys((*Settings.__annotations__, *Settings.model_fields)) if one not in ROLES]
    lines = [_INTRODUCTION, *_table(_rows(Settings, names, find_flags())), _ROLES]
    lines += _table(_rows(RoleSettings, RoleSettings.model_fields, _ROLE_FLAGS, owner="optimizer"))
    return "\n".join(lines) + "\n"


def find_flags() -> dict[str, str]:
    """Return the flag of ``drpo optimize`` that sets a setting, by the setting's name."""
    command: Any = typer.main.get_command(app)
    params = command.load("optimize").params
    return {param.name: "/".join([*param.opts[:1], *param.secondary_opts]) for param in params}


def describe_fields(model: type[BaseModel]) -> dict[str, str]:
    """Return what the text below each field says."""
    described: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    described[name] = " ".join(said.split()).replace("``", "`")
    return described


def _rows(
    model: type[BaseModel], names: Iterable[str], flags: dict[str, str], *, owner: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    described, defaults = describe_fields(model), model()
    others = getattr(Settings(), owner) if owner else defaults
    for name in names:
        default, other = (_as_text(getattr(one, name)) for one in (defaults, others))
        if default != other:
            default += f"; {other} for the {owner}"
        flag = flags.get(name, "")
        yield f"`{name}`", re.sub(r"--[\w/-]+", r"`\g<0>`", flag), default, described[name]


def _as_text(value: object) -> str:
    if value is None or value in ("", (), {}):
        return "unset"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = ["| setting | flag | default | meaning |", "|---|---|---|---|"]
    return [*lines, *("| " + " | ".join(re.sub(r"\|", r"\\|", cell) for cell in row) + " |" for row in rows)]


if __name__ == "__main__":
    sys.exit(main())
