"""Defaults, file, flags: merged in order, explained where wrong."""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue, ValidationError

from drpo_graph.errors import SettingsError
from drpo_graph.records import ROLES
from drpo_graph.safety.api_keys import KeyFinder
from drpo_graph.safety.redaction import redact
from drpo_graph.safety.text_files import read_text
from drpo_graph.safety.texts import clean_surrogates
from drpo_graph.settings.settings import RoleSettings, Settings
from drpo_graph.settings.small_models import bound_embedded

ALIASES = {
    "base_model_name": "base_model",
    "metrics_model_name": "metrics_model",
    "eval_model_name": "critic_model",
    "optimize_model_name": "optimizer_model",
    "initial_system_prompt": "initial_prompt",
    "num_training_examples": "num_queries",
    "metrics_cache_path": "metrics_cache",
    "temperature": "optimizer_temperature",
    "is_gpt": "base_prompt_format",
}
"""Parameter names of the published code, accepted in config files and on the command line."""

_MAX_TOLD = 60
"""Longer values are named, not shown."""

_NAMES = re.compile(r"(^|\.)(\w*model|\w*api_key_env|\w*base_url|embeddings|reward|stop|prices)$")
"""Of the settings those whose values name something: none of them has a reason to look like a key."""

_FOR_ALL_ROLES = ("model", "base_url", "api_key_env")


def describe_changes(before: Settings, after: Settings) -> list[str]:
    """Return what a resumed run would change of what decides its result, e.g. ``depth (was 10, now 12)``."""
    old, new = _flatten(before.fingerprint_fields()), _flatten(after.fingerprint_fields())
    changes = []
    for name, value in new.items():
        if old.get(name) != value:
            told = json.dumps(old.get(name)), json.dumps(value)
            is_short = max(map(len, told)) <= _MAX_TOLD
            changes.append(f"{name} (was {told[0]}, now {told[1]})" if is_short else name)
    return changes


def list_unusual(settings: Settings) -> dict[str, JsonValue]:
    """Return what decides the result and is not at its default, by name; the models and the prompt are left out."""
    usual = _flatten(Settings(compat=settings.compat).fingerprint_fields())
    own = _flatten(settings.fingerprint_fields())
    told_elsewhere = {"initial_prompt", *(f"{role}.model" for role in ROLES)}
    return {name: value for name, value in own.items() if value != usual.get(name) and name not in told_elsewhere}


def _flatten(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    flat: dict[str, JsonValue] = {}
    for name, value in fields.items():
        if name in ROLES and isinstance(value, dict):
            flat.update((f"{name}.{field}", setting) for field, setting in value.items())
        else:
            flat[name] = value
    return flat


def build_settings(values: Mapping[str, object]) -> Settings:
    """Return validated settings from flat or nested values; aliases and ``<role>_model`` shortcuts are resolved.

    Raises:
        SettingsError: a name is unknown or a value cannot be used; one line per problem.
    """
    merged = bound_embedded(_nest(values))
    typed = _find_typed(values)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        if (found := _find_key(merged, typed)) is not None:
            # Whatever else is wrong with it: the cause shows what was given.
            raise found from None
        raise SettingsError(explain_invalid(error, typed)) from error
    check_no_key(settings, typed)
    return settings


def check_no_key(settings: Settings, typed: Mapping[str, str] | None = None) -> None:
    """Do nothing where settings hold no key: they are stored, shown and logged.

    Args:
        settings: What is looked through.
        typed: What the user calls settings, where that is another name.

    Raises:
        SettingsError: they hold one, which is not repeated; or what is no text, and cannot be stored or sent.
    """
    values = settings.model_dump(exclude_defaults=True)
    for name, value in _flatten(values).items():
        if clean_surrogates(str(value)) != str(value):
            raise SettingsError(f"{(typed or {}).get(name, name)}: it is no UTF-8 text.")
    if (found := _find_key(settings.model_dump(mode="json", exclude_defaults=True), typed or {})) is not None:
        raise found


def _find_key(values: object, typed: Mapping[str, str]) -> SettingsError | None:
    found = KeyFinder().find_in(values, place="", names=_NAMES)
    if found is None:
        return None
    place, words = found
    return SettingsError(
        f"{redact(typed.get(place, place)) or 'settings'}: it holds {words}, and settings are stored. Leave it out: "
        "models find their key by the name of an environment variable (api_key_env)."
    )


def load_settings_file(path: Path) -> dict[str, object]:
    """Return the values in a TOML or JSON settings file, by its suffix.

    Raises:
        SettingsError: the file cannot be read or parsed.
    """
    try:
        text = read_text(path)
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"Settings file {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"Settings file {path}: it is not UTF-8 text. Save it as UTF-8.") from error
    except ValueError as error:
        raise SettingsError(f"Settings file {path}: {error}.") from error
    if not isinstance(values, dict):
        raise SettingsError(f"Settings file {path}: expected a table of settings, got {type(values).__name__}.")
    return values


def merge_settings(*layers: Mapping[str, object]) -> dict[str, object]:
    """Return the layers merged, later ones winning; role tables merge field by field."""
    merged: dict[str, object] = {}
    for layer in layers:
        for name, value in _nest(layer).items():
            present = merged.get(name)
            merged[name] = {**present, **value} if isinstance(present, dict) and isinstance(value, dict) else value
    return merged


def _nest(values: Mapping[str, object]) -> dict[str, object]:
    """Resolve aliases and turn ``critic_model="m"`` into ``critic={"model": "m"}``; ``model="m"`` is for all roles."""
    for_all = {name: values[name] for name in _FOR_ALL_ROLES if name in values}
    nested: dict[str, object] = {role: dict(for_all) for role in ROLES if for_all}
    for name, value in values.items():
        if name in for_all:
            continue
        field = _resolve(name)
        role, _, role_field = field.partition("_")
        given = _as_prompt_format(name, value) if field == "base_prompt_format" else value
        if role in ROLES and role_field and field not in Settings.model_fields:
            field, given = role, {role_field: given}
        if field in ROLES and isinstance(given, Mapping):
            table = nested.setdefault(field, {})
            if isinstance(table, dict):
                table.update(given)
        else:
            nested[field] = given
    return nested


def _resolve(name: str) -> str:
    """Return what a name is here: with underscores, and not that of the published code."""
    field = name.replace("-", "_")
    return ALIASES.get(field.lower(), field)


def _as_prompt_format(name: str, value: object) -> object:
    """Return the format that the published ``is_GPT`` means: chat roles, or one flat prompt.

    Raises:
        SettingsError: it is neither true nor false.
    """
    if name.lower().replace("-", "_") != "is_gpt":
        return value
    # The published command line's words for them, which files have taken over.
    truth = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(truth, bool):
        raise SettingsError(f"{name}: expected true or false (got {redact(repr(value))}).")
    return "chat" if truth else "flat"


def name_in_file(field: str, values: Mapping[str, object]) -> str:
    """Return what a file calls a setting: a published name, if that stands there, else its own."""
    return next((name for name in values if _resolve(name) == field), field)


def _find_typed(values: Mapping[str, object]) -> dict[str, str]:
    """Return the published names that were given, by what errors call them."""
    typed: dict[str, str] = {}
    for name in values:
        field = _resolve(name)
        if field != name.replace("-", "_"):
            role, _, role_field = field.partition("_")
            typed[f"{role}.{role_field}" if role in ROLES and field not in Settings.model_fields else field] = name
    return typed


def explain_invalid(error: ValidationError, typed: Mapping[str, str] | None = None) -> str:
    """Return what is wrong with values, a line each; ``typed`` is what the user calls some of them."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]) or "settings"
        name = (typed or {}).get(name, name)
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
        given = "" if problem["type"] in ("missing", "value_error") else f" (got {redact(repr(problem['input']))})"
        if problem["type"] == "extra_forbidden":
            message, given = f"there is no such setting{_suggest(name)}", ""
        lines.append(f"{name}: {message}{given}.")
    return "\n".join(lines)


def _suggest(name: str) -> str:
    known = [*Settings.model_fields, *ALIASES]
    known += [f"{role}.{field}" for role in ROLES for field in RoleSettings.model_fields]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f" (did you mean {close[0]!r}?)" if close else ""
