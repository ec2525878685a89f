"""Optimise ICL examples: a second graph on the same ledger, budget, events and displays."""

from drpo_graph.icl.graph import build_icl_graph
from drpo_graph.icl.runner import optimize_icl, resume_icl
from drpo_graph.icl.state import ICLInput, ICLOutput

__all__ = ["ICLInput", "ICLOutput", "build_icl_graph", "optimize_icl", "resume_icl"]
