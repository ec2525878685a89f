"""The graph as LangGraph's server loads it (``langgraph.json``): no checkpointer or store of its own.

Models and all other settings come with the request's context, ``{"settings": {"base_model": "openai:gpt-5-mini"}}``,
or from the settings file that the environment variable ``DRPO_CONFIG`` names.
"""

import os
from pathlib import Path

from drpo_graph.graph import build_graph
from drpo_graph.settings.layers import build_settings, load_settings_file

_config = os.environ.get("DRPO_CONFIG")

graph = build_graph(build_settings(load_settings_file(Path(_config))) if _config else None)
