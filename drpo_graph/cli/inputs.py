"""What ``drpo`` is given, read once: settings in their order of precedence, prompts, datasets."""

import asyncio
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from drpo_graph.cli.option_groups import SettingGroup
from drpo_graph.cli.options import Sources
from drpo_graph.cli.places import DEFAULT_PROMPTS, open_prompts
from drpo_graph.data.datasets import load_bundled_queries, load_queries
from drpo_graph.data.references import load_answered_queries
from drpo_graph.data.rows import AnsweredQuery
from drpo_graph.errors import DatasetError, NoRunsError, RunNotFoundError, SettingsError, UsageError
from drpo_graph.records import ROLES, Query, WarmStart
from drpo_graph.safety.text_files import read_text
from drpo_graph.settings.layers import build_settings, merge_settings, name_in_file
from drpo_graph.settings.limits import check_priced, check_prices
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.protocols import Storage


def read_settings(
    sources: Sources, *groups: SettingGroup, defaults: Mapping[str, object] = MappingProxyType({})
) -> Settings:
    """Return the settings of a new run; ``defaults`` are those of a command, in place of the settings' own.

    Later ones win: defaults, ``--config``, flags for all roles (``--model``), flags of one role or setting, ``--set``.

    Raises:
        UsageError: a name is unknown or a value cannot be used; it says where it stands.
    """
    try:
        merged = merge_settings(defaults, read_changes(sources, *groups))
        if isinstance(prompt := merged.get("initial_prompt"), str):
            merged["initial_prompt"] = read_prompt(prompt)
        settings = build_settings(merged)
    except SettingsError:
        if sources.config is not None:
            _blame(sources.config, sources.file)
        raise
    if settings.metrics_cache is not None and not settings.metrics_cache.is_file():
        is_filed = not any("metrics_cache" in group.given() for group in groups)
        name = tell_source(sources, "metrics_cache") if is_filed else "metrics_cache"
        raise SettingsError(f"{name}: there is no file {settings.metrics_cache}. Give one in the published form.")
    return settings


def tell_source(sources: Sources, field: str) -> str:
    """Return what an error calls a setting, or another value, that stands in the settings file if anywhere."""
    values = {**sources.file, **sources.run_values}
    name = name_in_file(field, values)
    return f"Settings file {sources.config}: {name}" if name in values else name


def read_changes(sources: Sources, *groups: SettingGroup) -> dict[str, object]:
    """Return the settings that a run which goes on, or a fork, is given, by name.

    Raises:
        SettingsError: the file, a price or an override cannot be read.
    """
    return merge_settings(sources.file, *(group.given() for group in groups), read_overrides(sources.overrides))


def check_budget(settings: Settings, priced: Collection[str]) -> None:
    """Do nothing when the models' prices and the budget go together; ``priced`` models have theirs from flags.

    Raises:
        UsageError: a price is for a model that no role uses, or money is capped and a model has none.
    """
    model_by_role: dict[str, str] = {role: settings.role(role).model for role in ROLES}
    model_by_role["embeddings"] = settings.called_embeddings
    check_priced(priced, model_by_role)
    check_prices(settings, model_by_role)


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
    datasets = {source: load_queries(source, stdin=sys.stdin) for source in sources}
    _check_distinct(datasets)
    return tuple(chain.from_iterable(datasets.values()))


def read_answered(sources: Sequence[str]) -> tuple[AnsweredQuery, ...]:
    """Return the queries of all datasets with their reference answers.

    Raises:
        DatasetError: one cannot be read, or two share a query id.
    """
    datasets = {source: load_answered_queries(source, stdin=sys.stdin) for source in sources}
    _check_distinct({source: [one.query for one in answered] for source, answered in datasets.items()})
    return tuple(chain.from_iterable(datasets.values()))


def _check_distinct(datasets: Mapping[str, Sequence[Query]]) -> None:
    if len(datasets) < 2:
        return
    source_by_id: dict[str, str] = {}
    for source, queries in datasets.items():
        for query in queries:
            if query.id in source_by_id:
                raise DatasetError(
                    f"{source} and {source_by_id[query.id]} share the query id {query.id!r}: give the queries other "
                    "ids, or one of the files another name."
                )
        source_by_id.update((query.id, source) for query in queries)


def check_held_out(training: Sequence[Query], validation: Sequence[Query]) -> None:
    """Do nothing when the validation queries are not among the training queries.

    Raises:
        DatasetError: they share an id or a text.
    """
    if not validation:
        return
    texts = {query.transcript for query in training}
    seen = [query.id for query in validation if query.transcript in texts]
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
    """Return the prompt in a file; ``advice`` says what to do where it cannot be read.

    Raises:
        UsageError: it cannot be read, or is blank.
    """
    try:
        prompt = read_text(path).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"Prompt file {path}: {reason}.{advice}") from error
    if not prompt:
        raise UsageError(f"Prompt file {path}: it is blank.")
    return prompt


def read_warm_start(text: str | None, storage: Storage) -> WarmStart | None:
    """Return what a new run begins with, or ``None`` where it begins anew.

    The text is a path, or the name of a run or model; a file wins over a run of the same name, a run over a model.

    Raises:
        UsageError: there is none of them, or nothing in it to begin with.
    """
    if text is None:
        return None
    path = Path(text)
    if path.is_file():
        return WarmStart(source=text, system_prompt=read_prompt_file(path))
    found = _find_run(text, storage) or _find_prompt(text)
    if found is None:
        raise UsageError(
            f"--warm-start {text}: expected a file with a prompt, a run of {storage.name}, or a model with a prompt in "
            f"{DEFAULT_PROMPTS}; `drpo runs` and `drpo prompts` list them."
        )
    return found


def _find_prompt(model: str) -> WarmStart | None:
    registry = open_prompts(None)
    found = registry.find(model) if registry is not None else None
    return None if found is None else WarmStart(source=f"the prompt of {model}", system_prompt=found.system_prompt)


def _find_run(thread_id: str, storage: Storage) -> WarmStart | None:
    if not storage.exists():
        return None
    from drpo_graph.runs.warm_start import load_warm_start  # Loads LangGraph.

    try:
        return asyncio.run(load_warm_start(storage, thread_id))
    except (NoRunsError, RunNotFoundError):
        return None


def _blame(config: Path, file: Mapping[str, object]) -> None:
    """Raise what is wrong with the settings file on its own, if anything is, with its name."""
    try:
        build_settings(file)
    except SettingsError as error:
        raise SettingsError("\n".join(f"Settings file {config}: {line}" for line in str(error).split("\n"))) from error
