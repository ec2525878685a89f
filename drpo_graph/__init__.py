"""Tuning-free alignment: optimise system prompts with DRPO as a durable, streaming LangGraph.

``optimize()`` and ``resume()`` run a search, ``build_graph()`` returns it as a graph for an app of your own,
``Settings`` says what it does. Names are loaded on first use: importing the package is quick and pulls in no client.
"""

import lazy_loader

__version__ = "0.1.0"

# The stub beside this file lists the names: what type checkers read, and what is loaded on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
