"""The settings that a caller of a served graph may choose: a list, so that a new setting is refused until it is on it.

A caller may be anybody who reaches LangGraph's server. Names of models, servers, variables, files and code are not on
the list: with them a caller would read the host's environment and files, or run code there.
"""

from collections.abc import Mapping
from typing import Any, Optional

from pydantic import BaseModel, ConfigDict, PrivateAttr, create_model
from pydantic.fields import FieldInfo

from drpo_graph.errors import SettingsError
from drpo_graph.records import ROLES
from drpo_graph.settings.layers import build_settings, merge_settings
from drpo_graph.settings.limits import CAPS
from drpo_graph.settings.settings import RoleSettings, Settings

_SEARCH = (
    *("compat", "seed", "initial_prompt", "approve", "num_queries"),
    *("depth", "max_depth_increase", "beam_size", "n_actions", "queries_per_level", "query_policy", "pool_size"),
    *("keep_parents", "deduplicate", "reward_aggregate", "skip_threshold", "history_window", "soft_scores"),
    *("max_metrics", "max_rationale_chars", "max_prompt_chars", "max_critiques_shown", "max_critique_chars"),
    *("beam_sampling", "beam_temperature", "beam_temperature_decay", "min_reward", "stop_reward"),
)
_SAMPLING = ("temperature", "top_p", "reasoning_effort")

CALLER_SETTINGS: Mapping[str, FieldInfo] = {
    **{name: Settings.model_fields[name] for name in (*_SEARCH, *CAPS)},
    **{f"{role}_{name}": RoleSettings.model_fields[name] for role in ROLES for name in _SAMPLING},
}
"""By the name that a caller gives it: how to search, what to spend at most, how to sample."""


def apply_callers(settings: Settings, given: Mapping[str, object]) -> Settings:
    """Return the settings of a graph with what a caller of it has chosen.

    Raises:
        SettingsError: it is not for a caller to choose, is more than the graph's budget, or is no such value.
    """
    if refused := sorted(set(given) - set(CALLER_SETTINGS)):
        raise SettingsError(
            f"{', '.join(refused)}: for whoever builds the graph to set, not for a caller of it. A caller may choose "
            f"{', '.join(sorted(CALLER_SETTINGS))}."
        )
    chosen = build_settings(merge_settings(settings.model_dump(exclude_unset=True), given))
    for cap in CAPS:
        own, asked = getattr(settings, cap), getattr(chosen, cap)
        if own is not None and (asked is None or asked > own):
            raise SettingsError(f"{cap}: the graph allows {own:g} at most (got {asked}).")
    return chosen


def _as_optional(field: FieldInfo) -> Any:
    # Only what is given counts; it is checked as a setting is, where the graph's own are known.
    return Optional[field.annotation], None  # noqa: UP045  # Built at run time.


_Choices: type[BaseModel] = create_model(
    "_Choices",
    __config__=ConfigDict(json_schema_extra={"additionalProperties": False}),
    **{name: _as_optional(field) for name, field in CALLER_SETTINGS.items()},
)


class CallerContext(_Choices):
    """What a caller without live objects, such as LangGraph's server, hands over as context: settings by name."""

    _given: dict[str, Any] = PrivateAttr()

    def __init__(self, **given: Any) -> None:
        # Nothing is refused here, where LangGraph would call it an internal error: the graph's first node does that.
        super().__init__()
        self._given = given

    @property
    def given(self) -> dict[str, Any]:
        """What the caller chose, as it came."""
        return self._given
