"""``python -m drpo_graph`` is ``drpo``."""

from drpo_graph.cli import main

if __name__ == "__main__":
    main()
