"""The general alignment prompt: what a model is told for which no prompt has been optimised."""

from importlib.resources import files
from typing import Final

GENERAL_PROMPT: Final = files(__package__).joinpath("general.md").read_text(encoding="utf-8").rstrip("\n")
"""The words of ``general.md``."""
