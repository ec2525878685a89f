"""Which models think before they answer, as far as their names tell: of other models nothing is known."""

import re

from drpo_graph.settings.prices import names_of
from drpo_graph.settings.settings import RoleSettings

# Those that think unless they are told not to: GPT-5.1 to 5.4 only do when an effort is set.
_THINKING = re.compile(
    r"gpt-5(\.[5-9])?(-mini|-nano|-pro)?|o[134](-mini|-pro)?|gpt-oss-\w+|deepseek-(reasoner|r1)|gemini-2\.5-(pro|flash)"
    r"|grok-(3-mini|4)|magistral-[\w-]+|qwq-\w+|.*(?<!-non)-(thinking|reasoning)",
    re.I,
)


def is_reasoning(role: RoleSettings) -> bool:
    """Return whether a role's model is known to think before it answers, by its name or by the effort that is set."""
    if role.reasoning_effort is not None:
        return role.reasoning_effort != "none"
    names = (name.rpartition(":")[2].rpartition("/")[2] for name in names_of(role.model))
    return any(_THINKING.fullmatch(name) for name in names)
