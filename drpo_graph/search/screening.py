"""Which of a candidate's rewrites are run, where the optimizer writes more than that. No model call."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import JsonValue

from drpo_graph.errors import ReplyError, ScreenError
from drpo_graph.parts.own_answers import take_choice
from drpo_graph.parts.own_code import call_own
from drpo_graph.parts.screens import RewriteScreen, ScreenRequest, ScreenTrial, check_choice, check_screen
from drpo_graph.records import Rollout
from drpo_graph.search.state import ExpandState
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive


class Screened(NamedTuple):
    """The rewrites that are run, and how they were chosen."""

    rewrites: list[str]
    """Best first; all of them, in the order in which they were written, where there were no more than are run."""
    record: dict[str, JsonValue] | None = None
    """The choice as it is kept with the expansion; ``None`` where there was none."""


async def screen_rewrites(
    rewrites: Sequence[str], state: ExpandState, *, screen: RewriteScreen | None, settings: Settings, archive: Archive
) -> Screened:
    """Return the rewrites of a candidate that are run on the level's queries.

    Raises:
        SettingsError: there is no screen where the settings want one.
        ScreenError: the screen's choice cannot be followed.
    """
    check_screen(settings, screen)
    if screen is None or len(rewrites) <= settings.n_actions:
        return Screened(list(rewrites))
    request = ScreenRequest(
        rewrites=tuple(rewrites),
        num_kept=settings.n_actions,
        queries=[await archive.query(one) for one in state["query_ids"]],
        trials=await read_trials(archive, before=state["level"]),
        seed=random.Random(f"{settings.seed}/screen/{state['level']}/{state['beam_rank']}").randrange(2**31),
    )
    try:
        said: object = await call_own(
            screen.choose, request, called="the screen", timeout_s=settings.timeout_s, is_bounded=False
        )
    except ReplyError as error:
        raise ScreenError(f"{str(error).capitalize()}. Mend it, then resume.") from error
    choice = check_choice(take_choice(said), request)
    record: dict[str, JsonValue] = {
        "num_proposed": len(rewrites),
        "num_trials": len(request.trials),
        "kept": list(choice.kept),
        "expected": None if choice.expected is None else list(choice.expected),
    }
    return Screened([rewrites[one] for one in choice.kept], record)


async def read_trials(archive: Archive, *, before: int) -> list[ScreenTrial]:
    """Return what was seen of prompts on training queries before a level, in creation order.

    Of the level itself nothing is: what its candidates have got by now depends on who was quicker. A kept prompt that
    was run again without a call is no second trial.
    """
    prompts = {key: str(one["prompt"]) for key, one in (await archive.get_all("candidates")).items()}
    order = {query_id: place for place, query_id in enumerate(await archive.query_order())}
    found: list[tuple[tuple[int, ...], Rollout]] = []
    for rollout in (await archive.records("rollouts", Rollout)).values():
        place = tuple(map(int, rollout.candidate_id.split(".")))
        is_scored = rollout.critique is not None and rollout.reward is not None
        if is_scored and rollout.query_id in order and place[0] < before:
            found.append(((*place, order[rollout.query_id]), rollout))
    trials: dict[tuple[str, str, str | None], ScreenTrial] = {}
    for _, one in sorted(found, key=lambda each: each[0]):
        prompt = prompts[one.candidate_id]
        query = (await archive.query(one.query_id)).text
        assert one.reward is not None
        trials.setdefault((prompt, one.query_id, one.response), ScreenTrial(prompt, query, one.reward))
    return list(trials.values())
