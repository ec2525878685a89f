"""Collect demonstrations: prompts tried on queries, in a graph on the same ledger, budget, events and displays."""

from drpo_graph.oirl.collection.graph import build_collection_graph
from drpo_graph.oirl.collection.inputs import Question, TrialOptions, TriedPrompt, load_tried_prompts
from drpo_graph.oirl.collection.runner import collect_demonstrations, resume_collection
from drpo_graph.oirl.collection.state import CollectionInput, CollectionOutput

__all__ = [
    "CollectionInput",
    "CollectionOutput",
    "Question",
    "TrialOptions",
    "TriedPrompt",
    "build_collection_graph",
    "collect_demonstrations",
    "load_tried_prompts",
    "resume_collection",
]
