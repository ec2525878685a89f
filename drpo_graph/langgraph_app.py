"""The graphs as LangGraph's server loads them (``langgraph.json``): no checkpointer or store of their own.

Models and all other settings come from the settings file that the environment variable ``DRPO_CONFIG`` names, and the
model of all roles from ``DRPO_MODEL`` where that is set. What a caller may choose for a run is less; see
:mod:`drpo_graph.settings.caller_settings`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from drpo_graph.graph import build_graph
from drpo_graph.icl.graph import build_icl_graph
from drpo_graph.settings.layers import build_settings, load_settings_file, merge_settings
from drpo_graph.settings.settings import Settings


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings that the environment names.

    Raises:
        SettingsError: the file cannot be read, or a setting in it cannot be used.
    """
    config, model = environment.get("DRPO_CONFIG"), environment.get("DRPO_MODEL")
    return build_settings(
        merge_settings(load_settings_file(Path(config)) if config else {}, {"model": model} if model else {})
    )


_settings = read_settings(os.environ)
graph = build_graph(_settings)
icl_graph = build_icl_graph(_settings)
