"""Tables as every display draws them, and that of what a run cost."""

from rich.table import Table
from rich.text import Text

from drpo_graph.display.formatting import NONE, format_count, format_usage
from drpo_graph.records import ROLES, CollectionResult, ICLResult, RunResult, Usage
from drpo_graph.safety.terminal import inert
from drpo_graph.settings.limits import tell_money

LABEL_WIDTH = 11
"""Of a first column of labels."""


def make_table(title: str = "") -> Table:
    """Return a table without lines; its title stands over it on the left."""
    heading = Text(title, style="bold") if title else None
    return Table(
        title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim"
    )


def cost_table(result: RunResult | ICLResult | CollectionResult) -> Table:
    """Return what a run used by role: calls, tokens, and money where prices are known."""
    table = make_table()
    table.add_column("cost", style="dim", width=LABEL_WIDTH)
    has_money = any(result.cost_by_role.values())
    has_reasoned = any(usage.reasoning_tokens for usage in result.usage_by_role.values())
    optional = (("of it reasoning", has_reasoned), ("money", has_money))
    for name in ("calls", "tokens in", "out", "cached", *(name for name, is_shown in optional if is_shown)):
        table.add_column(name, justify="right")

    def count(usage: Usage) -> list[str]:
        return [*format_usage(usage), *([format_count(usage.reasoning_tokens)] if has_reasoned else [])]

    total = Usage()
    roles = [role for role in ROLES if role in result.usage_by_role]
    for role in [*roles, *sorted(set(result.usage_by_role) - set(ROLES))]:
        usage = result.usage_by_role[role]
        total = total.plus(usage)
        money = [_money(result.cost_by_role.get(role))] if has_money else []
        table.add_row(Text(inert(role, max_chars=LABEL_WIDTH)), *count(usage), *money)
    is_whole = set(result.usage_by_role) <= set(result.cost_by_role)
    money = [_money(sum(result.cost_by_role.values()) if is_whole else None)] if has_money else []
    table.add_row("total", *count(total), *money, style="bold")
    return table


def _money(dollars: float | None) -> str:
    """Return a role's cost; of a model without a price it is not known, and the total is not either."""
    return NONE if dollars is None else tell_money(dollars)
