"""Tuning-free alignment: optimise system prompts with DRPO as a durable, streaming LangGraph.

``optimize()`` and ``resume()`` run a search, ``build_graph()`` returns it as a graph for an app of your own,
``Settings`` says what it does. Names are loaded on first use: importing the package is quick and pulls in no client.
"""

import ast

import lazy_loader

__version__ = "0.1.0"

# The stub beside this file lists the names: what type checkers read, and what is loaded on first use. The package's own
# loader reads it, which may be a zip file's.
_names_by_module: dict[str, list[str]] = {}
for _node in ast.parse(__loader__.get_data(__file__.rpartition(".")[0] + ".pyi")).body:
    if isinstance(_node, ast.ImportFrom) and _node.module:
        _names_by_module.setdefault(_node.module, []).extend(one.name for one in _node.names)
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names_by_module)
