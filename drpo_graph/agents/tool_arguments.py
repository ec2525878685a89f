"""What an agent's model may choose of an optimisation: less than the developer allows, and nothing else."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, create_model

from drpo_graph.errors import SettingsError
from drpo_graph.settings.limits import CAPS, flag_of
from drpo_graph.settings.settings import Settings

MAX_QUERY_CHARS = 4000
_MAX_THREAD_ID_CHARS = 200

_ABOUT = {
    "thread_id": "A stopped run to continue. Leave it out to start a new one.",
    "depth": "Levels of the search + 1. A continued run keeps its own.",
    "num_queries": "Training queries to use. A continued run keeps its own.",
    "queries": "Requests to train on, in place of the given ones. A continued run keeps its own.",
    "max_calls": "Model calls that the run may make.",
    "max_tokens": "Tokens that the run may use.",
    "max_cost": "USD that the run may spend.",
    "max_time": "Seconds that the run may work.",
}


def build_arguments(settings: Settings, *, num_queries: int, max_own_queries: int) -> type[BaseModel]:
    """Return the tool's arguments, each with the developer's value as its maximum; a cap that is not set is none.

    Args:
        settings: The developer's.
        num_queries: Training queries that there are.
        max_own_queries: Queries that the model may write itself.

    Raises:
        SettingsError: nothing bounds what a run may spend.
    """
    ceilings = {cap: getattr(settings, cap) for cap in CAPS if getattr(settings, cap) is not None}
    if not ceilings:
        flags = ", ".join(flag_of(cap).removeprefix("--").replace("-", "_") for cap in CAPS)
        raise SettingsError(
            f"An agent would spend without a limit: set at least one of {flags}. Its model can choose less, not more."
        )
    fields: dict[str, tuple[object, object]] = {
        "thread_id": (str | None, Field(None, description=_ABOUT["thread_id"], max_length=_MAX_THREAD_ID_CHARS)),
        "depth": (int | None, Field(None, description=_ABOUT["depth"], ge=2, le=settings.depth)),
        "num_queries": (int | None, Field(None, description=_ABOUT["num_queries"], ge=1, le=num_queries)),
    }
    for cap, ceiling in ceilings.items():
        kind = int if cap in ("max_calls", "max_tokens") else float
        about = f"{_ABOUT[cap]} {ceiling:g} when left out."
        fields[cap] = (kind | None, Field(None, description=about, gt=0, le=ceiling))
    if max_own_queries:
        query = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUERY_CHARS)]
        bounded = Field(None, description=_ABOUT["queries"], min_length=1, max_length=max_own_queries)
        fields["queries"] = (tuple[query, ...] | None, bounded)
    # A name that is not here, be it a model, a place or a file, is refused and not passed over.
    made: type[BaseModel] = create_model(  # type: ignore[call-overload]
        "OptimizeArguments", __config__=ConfigDict(extra="forbid"), **fields
    )
    return made


def explain_refusal(error: ValidationError) -> str:
    """Return why a call's arguments are refused, for the model that chose them."""
    problems = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]) or "arguments"
        is_unknown = problem["type"] == "extra_forbidden"
        problems.append(f"{name}: {'there is no such argument' if is_unknown else problem['msg']}")
    return f"Not started, and nothing was spent. {'; '.join(problems)}. The limits are the developer's."
