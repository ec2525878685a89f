"""The graph's nodes, one file each; :mod:`drpo_graph.graph` alone knows how they are connected."""

from drpo_graph.nodes.conclude import conclude
from drpo_graph.nodes.critique import critique
from drpo_graph.nodes.review import review
from drpo_graph.nodes.rewrite_prompts import rewrite_prompts
from drpo_graph.nodes.sample_errors import sample_errors
from drpo_graph.nodes.score_beams import score_beams
from drpo_graph.nodes.select_metrics import select_metrics
from drpo_graph.nodes.start_run import start_run

__all__ = [
    "conclude",
    "critique",
    "review",
    "rewrite_prompts",
    "sample_errors",
    "score_beams",
    "select_metrics",
    "start_run",
]
