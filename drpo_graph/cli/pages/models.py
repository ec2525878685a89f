"""What ``drpo models check`` prints: an endpoint's capabilities with their meaning for a run, and a sample per role."""

from typing import NamedTuple, TextIO

from rich.console import Console
from rich.text import Text

from drpo_graph.display.tables import make_table
from drpo_graph.models.capabilities import Capabilities
from drpo_graph.runs.role_checks import RoleCheck
from drpo_graph.safety.terminal import inert

_MAX_NAME = 200
_MAX_SHOWN = 300
_MAX_VERDICT = 1000


class _Row(NamedTuple):
    """A capability: its name, its answers, and what each means for a run."""

    field: str
    label: str
    yes: str
    no: str
    if_yes: str
    if_no: str


_ROWS = (
    _Row("has_chat", "chat", "yes", "no", "asked as a chat", "no chat template: asked by one text with headings"),
    _Row("has_completions", "text completions", "yes", "no", "base models can be asked", "models need a chat template"),
    _Row("has_system_role", "system role", "yes", "no", "sent as such", "system prompts go into the user's message"),
    _Row("has_n", "several samples", "yes", "no", "rewrites come in one request", "one request per rewrite"),
    _Row(
        "has_json_schema",
        "JSON schema",
        "enforced",
        "not enforced",
        "replies are read without re-asking",
        "replies are read leniently, and asked for again where they cannot be",
    ),
    _Row("has_tools", "tool call", "forced", "not forced", "stands in for a JSON schema", "cannot stand in for it"),
    _Row("has_json_mode", "JSON mode", "yes", "no", "stands in for both", "replies without a schema may be prose"),
    _Row("has_logprobs", "log probabilities", "yes", "no", "soft_scores can be used", "soft_scores stay whole numbers"),
    _Row("has_stop", "stop", "yes", "no", "responses end in time", "responses are cut when they are read"),
    _Row(
        "reports_cached_tokens",
        "cached tokens",
        "reported",
        "not reported",
        "the cost table shows them",
        "the cost table cannot show them",
    ),
)
_UNKNOWN = "what it is shows during a run"


class Page:
    """The page, printed bit by bit as things are found out."""

    def __init__(self, stdout: TextIO) -> None:
        self._console = Console(file=stdout, highlight=False, markup=False, emoji=False)

    def show_endpoint(self, name: str, place: str, *, capabilities: Capabilities) -> None:
        """Print what an endpoint can do with a model."""
        heading = Text.assemble((inert(name, max_chars=_MAX_NAME), "bold"), f" at {inert(place, max_chars=_MAX_NAME)}")
        self._console.print(heading, soft_wrap=True)
        table = make_table()
        table.add_column("capability", no_wrap=True)
        table.add_column("answer", no_wrap=True)
        table.add_column("for a run", ratio=1)
        for row in capability_rows(capabilities):
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table, Text())

    def show_note(self, text: str) -> None:
        """Print a remark."""
        self._console.print(Text(inert(text, max_chars=_MAX_VERDICT)), Text(), soft_wrap=True)

    def show_role(self, check: RoleCheck) -> None:
        """Print what came of one role's sample."""
        usage = check.usage
        requests = f"{check.num_requests} request{'' if check.num_requests == 1 else 's'}"
        how = check.rung if check.endpoint != "completions" else f"{check.rung}, text completion"
        facts = f"{how}, {requests}, {check.duration_s:.1f} s, {usage.prompt_tokens} + {usage.completion_tokens} tokens"
        self._console.print(Text.assemble((check.role, "bold"), f"  {facts}"), soft_wrap=True)
        reading, reply = (inert(text, max_chars=_MAX_SHOWN) for text in (check.reading, check.reply))
        lines = {"reply": reply, "read": "" if reading == reply else reading}
        for label, line in lines.items():
            if line:
                self._console.print(Text.assemble((f"  {label:7}", "dim"), line), soft_wrap=True)

    def show_verdicts(self, checks: tuple[RoleCheck, ...]) -> None:
        """Print one line per role."""
        if checks:
            self._console.print(Text())
        for check in checks:
            style = "green" if check.is_usable else "bold red"
            verdict = check.verdict if check.is_usable else f"not usable: {check.verdict}"
            shown = (inert(verdict, max_chars=_MAX_VERDICT), style)
            self._console.print(Text.assemble(f"{check.role:11}", shown), soft_wrap=True)


def capability_rows(found: Capabilities) -> list[tuple[str, str, str]]:
    """Return each capability's name, its answer, and what that means for a run."""
    rows = [("server", inert(found.server, max_chars=_MAX_NAME) or "unknown", "")]
    for row in _ROWS:
        answer = getattr(found, row.field)
        if answer is None:
            rows.append((row.label, "unknown", _UNKNOWN))
        else:
            rows.append((row.label, row.yes, row.if_yes) if answer else (row.label, row.no, row.if_no))
    rows.append(("seed", *_describe_seed(found)))
    if found.max_context is None:
        rows.append(("context", "unknown", "prompts that are too long are refused by the server"))
    else:
        rows.append(("context", f"{found.max_context:,} tokens", "prompts that are too long are not sent"))
    counts = ("exact", "by the server's tokenizer") if found.counts_tokens else ("none", "the server cannot count them")
    rows.append(("token counts", *counts))
    rows.append(("first rung", found.first_rung, "how structured replies are asked for first"))
    return rows


def _describe_seed(found: Capabilities) -> tuple[str, str]:
    if found.has_seed is None:
        return "unknown", _UNKNOWN
    if not found.has_seed:
        return "refused", "samples cannot be repeated"
    if found.is_reproducible is None:
        return "accepted", "whether it repeats a sample did not show"
    if found.is_reproducible:
        return "repeats", "equal requests give equal samples"
    return "accepted", "but it does not repeat a sample"
