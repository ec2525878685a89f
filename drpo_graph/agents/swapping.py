"""Whether what a run found takes the place of the prompt in use."""

from typing import Literal, NamedTuple

from drpo_graph.agents.prompt_slot import PromptSlot, SlotVersion
from drpo_graph.evidence import NOT_COMPARED, find_evidence
from drpo_graph.records import RunResult, Validation
from drpo_graph.registry import RegisteredPrompt

SwapRule = Literal["auto", "better", "significant"]
"""When a found prompt is put in use. ``significant``: the 95% interval of its gain on held-out queries lies above zero.
``better``: it scored higher than the initial prompt on the same queries, held-out ones where the run had any. ``auto``:
``significant`` where the run had held-out queries, else ``better``."""


class Swap(NamedTuple):
    """What became of a found prompt."""

    version: SlotVersion | None
    """Its version in the slot, if it was put in use."""
    reason: str
    """Why, or why not, in a clause."""


def swap_if_better(slot: PromptSlot, result: RunResult, *, swap_when: SwapRule = "auto") -> Swap:
    """Put a run's prompt in use if it is better than the one that is, and say why.

    A run that began with another prompt than the one in use says nothing of that one, and changes nothing. Nor does any
    run where a router is in use: it was compared with one of its prompts at most.

    Args:
        slot: Holds the prompt in use.
        result: What the run found.
        swap_when: What counts as better.

    Raises:
        UsageError: the slot cannot be written, or was swapped at this very moment.
    """
    current = slot.current
    if current.router is not None:
        return Swap(None, "a router is in use, with whose choices the run did not compare")
    if result.system_prompt == current.text:
        return Swap(None, "it is the prompt in use")
    if result.initial_prompt != current.text:
        return Swap(None, "the run began with another prompt than the one in use")
    is_better, reason = _judge(result, swap_when)
    return Swap(slot.swap(result, if_version=current.version) if is_better else None, reason)


def _judge(result: RunResult, rule: SwapRule) -> tuple[bool, str]:
    known = RegisteredPrompt.from_result(result, model=result.thread_id)
    is_validated = result.validation is not None
    if rule == "significant" or (rule == "auto" and is_validated):
        if known.is_significant:
            return True, "the gain on held-out queries is significant"
        return False, "no significant gain on held-out queries was shown" if is_validated else "nothing was held out"
    if find_evidence(result) == "not_compared":
        return False, f"it was {NOT_COMPARED}; hold some out to compare on"
    if result.validation is not None:
        return _judge_by_differences(result.validation)
    if known.reward is None or known.initial_reward is None:
        return False, "not all rewards are known"
    if known.reward > known.initial_reward:
        return True, f"its reward is {known.reward:.2f}, the initial prompt's {known.initial_reward:.2f}"
    return False, f"its reward is {known.reward:.2f}, not above the initial prompt's {known.initial_reward:.2f}"


def _judge_by_differences(validation: Validation) -> tuple[bool, str]:
    """Judge by the queries that have a score with both prompts: the mean rewards may be over other ones."""
    for one in validation.comparisons:
        if one.candidate_id == validation.selected_id and one.difference is not None:
            return True, f"it scored {one.difference:+.2f} on {one.num_queries} held-out queries"
    return False, "no contender scored higher than the initial prompt on held-out queries"
