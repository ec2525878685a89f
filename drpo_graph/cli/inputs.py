"""What ``drpo`` is given, read once: settings in their order of precedence, prompts, datasets."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from drpo_graph.data.datasets import load_bundled_queries, load_queries
from drpo_graph.errors import DatasetError, SettingsError, UsageError
from drpo_graph.records import ROLES, Query
from drpo_graph.settings.layers import build_settings, load_settings_file, merge_settings
from drpo_graph.settings.limits import CAPS, check_priced, check_prices
from drpo_graph.settings.prices import parse_price
from drpo_graph.settings.settings import Settings

_FLAGS_NAMED_LIKE_SETTINGS = (
    "initial_prompt",
    "depth",
    "max_depth_increase",
    "beam_size",
    "n_actions",
    "queries_per_level",
    "query_policy",
    "pool_size",
    "keep_parents",
    "num_queries",
    "seed",
    "compat",
    "templates",
    "metrics_cache",
    "ret_icl",
    "k",
    "icl_examples",
    "embeddings",
    "embeddings_base_url",
    "reward",
    "reward_weight",
    "placeholders",
    "approve",
    "max_concurrency",
    "requests_per_second",
    "base_model",
    "metrics_model",
    "critic_model",
    "optimizer_model",
)
_SETTING_BY_FLAG = {**{name: name for name in _FLAGS_NAMED_LIKE_SETTINGS}, "temperature": "optimizer_temperature"}
_SETTING_BY_FLAG["max_outage"] = "max_outage_s"


def read_settings(given: Mapping[str, object]) -> Settings:
    """Return the settings of a new run from the parameters of its command.

    Later ones win: defaults, ``--config``, flags for all roles (``--model``), flags of one role or setting, ``--set``.

    Raises:
        UsageError: a name is unknown or a value cannot be used; it says where it stands.
    """
    config = given["config"]
    assert config is None or isinstance(config, Path)
    roles, own = _read_roles(given), _read_flags(given)
    if given["is_gpt"] is not None:
        own["base_prompt_format"] = "chat" if given["is_gpt"] else "flat"
    overrides = given["overrides"]
    assert overrides is None or isinstance(overrides, list)
    file = load_settings_file(config) if config else {}
    merged = merge_settings(file, roles, own, read_overrides(overrides))
    if isinstance(prompt := merged.get("initial_prompt"), str):
        merged["initial_prompt"] = read_prompt(prompt)
    try:
        return build_settings(merged)
    except SettingsError:
        if config is not None:
            _blame(config, file)
        raise


def check_budget(settings: Settings, priced: Collection[str]) -> None:
    """Do nothing when the models' prices and the budget go together.

    Args:
        settings: With the budget.
        priced: Models that the command line gives a price.

    Raises:
        UsageError: a price is for a model that no role uses, or money is capped and a model has none.
    """
    model_by_role: dict[str, str] = {role: settings.role(role).model for role in ROLES}
    check_priced(priced, model_by_role)
    check_prices(settings, model_by_role)


def read_priced(given: Mapping[str, object]) -> tuple[str, ...]:
    """Return the models that a command line gives a price.

    Raises:
        SettingsError: a price cannot be read.
    """
    texts = given["prices"]
    return tuple(parse_price(text)[0] for text in texts) if isinstance(texts, list) else ()


def read_changes(given: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that a resumed run is given, by name, from the parameters of its command.

    Raises:
        SettingsError: the file, a price or an override cannot be read.
    """
    config, overrides = given["config"], given["overrides"]
    assert config is None or isinstance(config, Path)
    assert overrides is None or isinstance(overrides, list)
    file, own = load_settings_file(config) if config else {}, _read_budget(given)
    if given["max_outage"] is not None:
        own["max_outage_s"] = given["max_outage"]
    if given["reward"] is not None:
        own["reward"] = given["reward"]
    return merge_settings(file, own, read_overrides(overrides))


def read_fork_changes(given: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that a fork is given, by name, from the parameters of its command.

    Raises:
        SettingsError: the file, a price or an override cannot be read.
    """
    config, overrides = given["config"], given["overrides"]
    assert config is None or isinstance(config, Path)
    assert overrides is None or isinstance(overrides, list)
    file = load_settings_file(config) if config else {}
    return merge_settings(file, _read_roles(given), _read_flags(given), read_overrides(overrides))


def _read_roles(given: Mapping[str, object]) -> dict[str, object]:
    return {name: given[name] for name in ("model", "base_url", "api_key_env") if given.get(name) is not None}


def _read_flags(given: Mapping[str, object]) -> dict[str, object]:
    own = {setting: given[flag] for flag, setting in _SETTING_BY_FLAG.items() if given.get(flag) is not None}
    return {**own, **_read_budget(given)}


def _read_budget(given: Mapping[str, object]) -> dict[str, object]:
    values: dict[str, object] = {cap: given[cap] for cap in CAPS if given[cap] is not None}
    texts = given["prices"]
    if isinstance(texts, list):
        values["prices"] = {model: price.model_dump() for model, price in map(parse_price, texts)}
    return values


def read_overrides(overrides: Sequence[str] | None) -> dict[str, object]:
    """Return the settings in ``NAME=VALUE`` texts; a value that is no JSON is a text.

    Raises:
        SettingsError: one is not of this form.
    """
    values: dict[str, object] = {}
    for override in overrides or ():
        name, separator, text = override.partition("=")
        if not separator or not name:
            raise SettingsError(f"--set {override}: expected NAME=VALUE, e.g. critic.max_tokens=512.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        role, dot, field = name.partition(".")
        values = merge_settings(values, {role: {field: value}} if dot else {name: value})
    return values


def read_datasets(sources: Sequence[str]) -> tuple[Query, ...]:
    """Return the queries of all datasets, or the bundled ones when there are none.

    Raises:
        DatasetError: one cannot be read, or two share a query id.
    """
    if not sources:
        return load_bundled_queries()
    source_by_id: dict[str, str] = {}
    queries: list[Query] = []
    for source in sources:
        for query in load_queries(source, stdin=sys.stdin):
            if query.id in source_by_id:
                raise DatasetError(
                    f"{source} and {source_by_id[query.id]} share the query id {query.id!r}: give the queries other "
                    "ids, or one of the files another name."
                )
            queries.append(query)
        source_by_id.update((query.id, source) for query in queries[len(source_by_id) :])
    return tuple(queries)


def check_held_out(training: Sequence[Query], validation: Sequence[Query]) -> None:
    """Do nothing when the validation queries are not among the training queries.

    Raises:
        DatasetError: they share an id or a text.
    """
    texts = {query.text for query in training}
    seen = [query.id for query in validation if query.text in texts]
    if seen:
        raise DatasetError(
            f"--validation: {len(seen)} of {len(validation)} queries are training queries too (the first is "
            f"{seen[0]!r}). Take them out of one of the datasets: a gain on what was trained on shows nothing."
        )
    ids = {query.id for query in training}
    shared = [query.id for query in validation if query.id in ids]
    if shared:
        raise DatasetError(
            f"--validation: the training queries have the id {shared[0]!r} too. Give the queries other ids, or one of "
            "the files another name."
        )


def read_prompt(text: str) -> str:
    """Return a prompt given as text, or the content of the file that ``@FILE`` names.

    Raises:
        UsageError: the file cannot be read, or is blank.
    """
    if not text.startswith("@"):
        return text
    return read_prompt_file(Path(text[1:]), advice=" Give the path of a text file after '@', or the prompt itself.")


def read_prompt_file(path: Path, *, advice: str = "") -> str:
    """Return the prompt in a file.

    Args:
        path: The file.
        advice: What to do where it cannot be read.

    Raises:
        UsageError: it cannot be read, or is blank.
    """
    try:
        prompt = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"Prompt file {path}: {reason}.{advice}") from error
    if not prompt:
        raise UsageError(f"Prompt file {path}: it is blank.")
    return prompt


def _blame(config: Path, file: Mapping[str, object]) -> None:
    """Do nothing when the settings file is right on its own.

    Raises:
        SettingsError: it is not; the message names it.
    """
    try:
        build_settings(file)
    except SettingsError as error:
        raise SettingsError("\n".join(f"Settings file {config}: {line}" for line in str(error).split("\n"))) from error
