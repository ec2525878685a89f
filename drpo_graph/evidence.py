"""What is known of a delivered prompt beside the initial one."""

from typing import Final

from drpo_graph.records import ROOT_ID, Evidence, RunResult

NOT_COMPARED: Final = "not compared with the initial prompt on the same queries"


def find_evidence(result: RunResult) -> Evidence:
    """Return what shows that a run's prompt is better than the initial one, if anything does."""
    if result.system_prompt == result.initial_prompt:
        return "initial_prompt"
    if result.validation is not None:
        is_chosen = result.validation.selected_id == result.candidate_id != ROOT_ID
        return "held_out_queries" if is_chosen else "not_better"
    same = result.initial_reward_same_queries
    if result.reward is None or same is None:
        return "not_compared"
    return "same_queries" if result.reward > same else "not_better"
