"""What an agent's model may choose of an optimisation: less than the developer allows, and nothing else."""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, create_model

from drpo_graph.errors import SettingsError
from drpo_graph.settings.limits import CAPS, flag_of
from drpo_graph.settings.settings import Settings

MAX_QUERY_CHARS = 4000
_MAX_THREAD_ID_CHARS = 200

_ABOUT_BY_CAP = {
    "max_calls": "Model calls that the run may make.",
    "max_tokens": "Tokens that the run may use.",
    "max_cost": "USD that the run may spend.",
    "max_time": "Seconds that the run may work.",
}


class Choices(NamedTuple):
    """What the model chose, where it did."""

    thread_id: str | None
    depth: int | None
    num_queries: int | None
    queries: tuple[str, ...] | None
    caps: Mapping[str, object]


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
        "thread_id": (
            str | None,
            Field(
                None,
                max_length=_MAX_THREAD_ID_CHARS,
                description="A stopped run to continue. Leave it out to start a new one.",
            ),
        ),
        "depth": (
            int | None,
            Field(
                None, ge=2, le=settings.depth, description="Levels of the search + 1. A continued run keeps its own."
            ),
        ),
        "num_queries": (
            int | None,
            Field(None, ge=1, le=num_queries, description="Training queries to use. A continued run keeps its own."),
        ),
    }
    for cap, ceiling in ceilings.items():
        kind = int if cap in ("max_calls", "max_tokens") else float
        about = f"{_ABOUT_BY_CAP[cap]} {ceiling:g} when left out."
        fields[cap] = (kind | None, Field(None, gt=0, le=ceiling, description=about))
    if max_own_queries:
        query = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUERY_CHARS)]
        about = "Requests to train on, in place of the given ones. A continued run keeps its own."
        fields["queries"] = (
            tuple[query, ...] | None,
            Field(None, min_length=1, max_length=max_own_queries, description=about),
        )
    # A name that is not here, be it a model, a place or a file, is refused and not passed over.
    made: type[BaseModel] = create_model(  # type: ignore[call-overload]
        "OptimizeArguments", __config__=ConfigDict(extra="forbid"), **fields
    )
    return made


def read_choices(given: Mapping[str, object]) -> Choices:
    """Return the arguments of a call, which LangChain has checked, by what they are for."""
    queries = given.get("queries")
    thread_id, depth, number = (given.get(name) for name in ("thread_id", "depth", "num_queries"))
    return Choices(
        thread_id=thread_id if isinstance(thread_id, str) else None,
        depth=depth if isinstance(depth, int) else None,
        num_queries=number if isinstance(number, int) else None,
        queries=tuple(map(str, queries)) if isinstance(queries, list | tuple) else None,
        caps={cap: given[cap] for cap in CAPS if given.get(cap) is not None},
    )


def explain_refusal(error: ValidationError) -> str:
    """Return why a call's arguments are refused, for the model that chose them."""
    problems = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]) or "arguments"
        is_unknown = problem["type"] == "extra_forbidden"
        problems.append(f"{name}: {'there is no such argument' if is_unknown else problem['msg']}")
    return f"Not started, and nothing was spent. {'; '.join(problems)}. The limits are the developer's."
