"""Load and fill the prompt templates: pure but for reading the files once.

Each template is one Markdown file with ``$name`` placeholders, filled in a single pass: a value is never scanned for
placeholders, so a query that holds ``$response`` stays a query. A folder of the user's own may replace any of them.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from drpo_graph.errors import TemplateError
from drpo_graph.prompts.fencing import defuse, escape_headings
from drpo_graph.prompts.fencing import fence as fence
from drpo_graph.prompts.flat import FLAT_STOPS, Settled, clean_answer, join_turns, settle_answer
from drpo_graph.prompts.messages import Message as Message
from drpo_graph.records import ICLExample, Metric, MetricSelection, Query, RejectedRewrite, Rollout, metric_key
from drpo_graph.safety.text_files import read_text

PLACEHOLDERS: Mapping[str, frozenset[str]] = {
    "select_metrics": frozenset({"metrics", "query"}),
    "critique": frozenset({"metrics", "reasoning", "query", "response"}),
    "rewrite_prompts": frozenset({"former_prompts", "current_prompt", "critiques"}),
    "repair": frozenset({"problem"}),
    "respond_flat": frozenset({"system_prompt", "query"}),
    "keep_placeholders": frozenset({"placeholders"}),
}
KEEP_PLACEHOLDERS = "keep_placeholders"
"""The template that is added for prompts that are templates themselves; part of the fingerprint of such runs alone."""
METRICS_FILE = "metrics.toml"
_WARM_START = "rejected_rewrites"
"""The template that only a run with a warm start has any use for."""
_REFERENCE = "known_reference"
"""The template that only queries with a reference have any use for."""
_ICL = "rewrite_response"
"""The template that only the optimisation of ICL examples has any use for; no part of a search's fingerprint."""
_RARE_PLACEHOLDERS: Mapping[str, frozenset[str]] = {
    _WARM_START: frozenset({"rewrites"}),
    _REFERENCE: frozenset({"reference"}),
    _ICL: frozenset({"example"}),
}
_FILES = (*(f"{name}.md" for name in PLACEHOLDERS), METRICS_FILE, *(f"{name}.md" for name in _RARE_PLACEHOLDERS))
_QUOTED = re.compile(r'"[^"]*"')
_FIRST_SENTENCE = re.compile(r"(?<=[.?!])\s")

PromptFormat = Literal["chat", "flat"]


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """How the model that is aligned is asked for a response, and how its response is read.

    The search and the use of a prompt that it found go through the same format: a prompt is served as it was scored.
    """

    flat: Template | None = None
    """The flat prompt's template; without it the request has chat roles."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts at which the server should end the response, beside the role's own."""
        return FLAT_STOPS if self.flat is not None else ()

    def render(
        self,
        *,
        system_prompt: str,
        query: str,
        examples: Sequence[ICLExample] = (),
        history: Sequence[Message] = (),
    ) -> list[Message]:
        """Return the request: chat roles, or one flat text.

        Args:
            examples: ICL examples, in the order in which they are shown; they read like former exchanges.
            history: The conversation so far, of user and assistant, oldest first; it stands after the examples.
        """
        turns = [*as_turns(examples), *history, Message(role="user", content=query)]
        if self.flat is None:
            return [{"role": "system", "content": system_prompt}, *turns]
        # A heading in one of them would begin an exchange that nobody had.
        fields = {"system_prompt": escape_headings(system_prompt), "query": join_turns(turns)}
        return [{"role": "user", "content": self.flat.substitute(fields)}]

    def clean(self, text: str, *, is_cut: bool) -> str:
        """Return the response in a model's text, of which the token limit may have cut off the end."""
        return clean_answer(text, is_cut=is_cut) if self.flat is not None else text.strip()

    def settle(self, text: str) -> Settled:
        """Return what of the response is certain while the model still writes: :meth:`clean` begins with it."""
        return settle_answer(text) if self.flat is not None else Settled(text.strip())


@dataclass(frozen=True, slots=True)
class PromptLibrary:
    """All templates and metrics of a run."""

    templates: Mapping[str, Template]
    metrics: tuple[Metric, ...]
    fingerprint: str
    """SHA-256 over every template and metric that a search uses, part of the run's fingerprint."""

    @property
    def response_fingerprint(self) -> str:
        """SHA-256 of the template that asks for a better response of an ICL example."""
        return hashlib.sha256(self.templates[_ICL].template.encode()).hexdigest()

    @property
    def rewrite_task(self) -> tuple[str, ...]:
        """What the optimizer is told to do, without what its template quotes: a prompt may well say that."""
        return tuple(_QUOTED.split(self.templates["rewrite_prompts"].template))

    def render_select_metrics(self, query: Query) -> list[Message]:
        """Return the request that asks which metrics matter for a query."""
        # The gist is enough to choose by; the critic gets the whole definition of those chosen.
        listed = "\n".join(
            f"- {metric.name}: {_FIRST_SENTENCE.split(metric.definition, 1)[0]}" for metric in self.metrics
        )
        return self._user("select_metrics", metrics=listed, query=fence("query", query.transcript))

    def render_critique(self, *, query: Query, response: str, selection: MetricSelection) -> list[Message]:
        """Return the request that asks for one response's scores."""
        described = "\n".join(f"- {_one_line(one.name)}: {_one_line(one.definition)}" for one in selection.metrics)
        asked = fence("query", query.transcript)
        if query.reference:
            asked += "\n\n" + self._fill(_REFERENCE, reference=fence("reference", query.reference)).strip()
        return self._user(
            "critique",
            metrics=fence("metrics", described),
            reasoning=fence("reasoning", selection.reasoning),
            query=asked,
            response=fence("answer", response),
        )

    def render_rewrite(
        self,
        *,
        current_prompt: str,
        former_prompts: Sequence[str],
        examples: Sequence[tuple[Query, Rollout]],
        rejected: Sequence[RejectedRewrite] = (),
        placeholders: Sequence[str] = (),
    ) -> list[Message]:
        """Return the request that asks for a better system prompt.

        Args:
            former_prompts: Earlier prompts of its path, oldest first, without the current one.
            examples: Queries with the candidate's rollouts on them, in the order they should be shown.
            rejected: What a former run tried and found worse; without any, the request is as if there were none.
            placeholders: What the new prompt must keep as it is written.
        """
        former = "\n\n".join(
            f"Version {number}:\n{fence('prompt', prompt)}" for number, prompt in enumerate(former_prompts, 1)
        )
        shown = "\n\n".join(
            render_rollout(number, query, rollout) for number, (query, rollout) in enumerate(examples, 1)
        )
        versions = former or "(none: this is the first version)"
        if rejected:
            listed = "\n\n".join(_render_rejected(number, one) for number, one in enumerate(rejected, 1))
            versions = f"{versions}\n\n{self._fill(_WARM_START, rewrites=listed).strip()}"
        messages = self._user(
            "rewrite_prompts",
            former_prompts=versions,
            current_prompt=fence("prompt", current_prompt),
            critiques=shown or "(no answer could be judged; improve the prompt on its own merits)",
        )
        if placeholders:
            listed = "\n".join(f"- {one}" for one in placeholders)
            messages[-1]["content"] += "\n\n" + self._fill(KEEP_PLACEHOLDERS, placeholders=listed)
        return messages

    def render_rewrite_response(self, query: Query, rollout: Rollout) -> list[Message]:
        """Return the request that asks for a better response to a query, from one that was scored."""
        return self._user(_ICL, example=render_rollout(1, query, rollout))

    def render_repair(self, problem: str) -> Message:
        """Return the message that asks for a usable reply after one that was not."""
        return {"role": "user", "content": self._fill("repair", problem=defuse(problem))}

    def response_format(self, prompt_format: PromptFormat) -> ResponseFormat:
        """Return how responses are asked for and read: with chat roles, or flat (URIAL style, arXiv 2312.01552)."""
        return ResponseFormat(self.templates["respond_flat"] if prompt_format == "flat" else None)

    def _user(self, name: str, **values: str) -> list[Message]:
        return [{"role": "user", "content": self._fill(name, **values)}]

    def _fill(self, name: str, **values: str) -> str:
        return self.templates[name].substitute(values)


def load_prompts(folder: Path | None = None, *, has_placeholders: bool = False) -> PromptLibrary:
    """Return our templates and metrics, replaced file by file by those in ``folder``.

    Args:
        has_placeholders: Whether the prompt is a template itself, which the optimizer is told then.

    Raises:
        TemplateError: the folder does not exist or replaces nothing, a file cannot be read, a template's placeholders
            are not those its renderer fills, or the metrics file is malformed.
    """
    if folder is not None:
        _check_folder(folder)
    texts = {file: _read(file, folder) for file in _FILES}
    wanted_by_name = {**PLACEHOLDERS, **_RARE_PLACEHOLDERS}
    templates = {name: _check_template(name, texts[f"{name}.md"], wanted) for name, wanted in wanted_by_name.items()}
    metrics = _parse_metrics(texts[METRICS_FILE])
    unused = {_ICL}
    # Ours are left out: the fingerprints of runs that do without them stay what they were.
    for name in (_WARM_START, _REFERENCE):
        if folder is None or not (folder / f"{name}.md").is_file():
            unused.add(name)
    if not has_placeholders and texts[f"{KEEP_PLACEHOLDERS}.md"] == _read(f"{KEEP_PLACEHOLDERS}.md", None):
        unused.add(KEEP_PLACEHOLDERS)
    used = [file for file in _FILES if file.removesuffix(".md") not in unused]
    digest = hashlib.sha256("\0".join(f"{file}\0{texts[file]}" for file in used).encode()).hexdigest()
    return PromptLibrary(templates=templates, metrics=metrics, fingerprint=digest)


def as_turns(examples: Sequence[ICLExample]) -> list[Message]:
    """Return ICL examples as the former exchanges that a model is shown."""
    turns: list[Message] = []
    for example in examples:
        turns += [{"role": "user", "content": example.query}, {"role": "assistant", "content": example.response}]
    return turns


def history_of(query: Query) -> list[Message]:
    """Return the turns before a query as messages."""
    return [{"role": turn.role, "content": turn.content} for turn in query.history]


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise TemplateError(f"Template folder {folder} does not exist.")
    if not any((folder / file).is_file() for file in _FILES):
        raise TemplateError(f"Template folder {folder} replaces nothing: expected any of {', '.join(_FILES)}.")


def _read(name: str, folder: Path | None) -> str:
    own = folder / name if folder is not None else None
    try:
        if own is not None and own.is_file():
            return read_text(own)
        return files("drpo_graph.prompts").joinpath(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"Template {own or name} cannot be read: {error}.") from error


def _check_template(name: str, text: str, wanted: Set[str]) -> Template:
    template = Template(text)
    if not template.is_valid():
        raise TemplateError(f"Template {name}.md has a stray '$'; write '$$' for a literal one.")
    found = set(template.get_identifiers())
    if found != wanted:
        missing = ", ".join(f"${one}" for one in sorted(wanted - found)) or "none"
        unknown = ", ".join(f"${one}" for one in sorted(found - wanted)) or "none"
        raise TemplateError(f"Template {name}.md: missing placeholders: {missing}; unknown placeholders: {unknown}.")
    return template


def _parse_metrics(text: str) -> tuple[Metric, ...]:
    try:
        entries = tomllib.loads(text)["metric"]
        metrics = tuple(
            Metric(name=entry["name"], definition=" ".join(entry["definition"].split())) for entry in entries
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise TemplateError(
            f"{METRICS_FILE}: expected [[metric]] tables with name and definition: {error!r}."
        ) from error
    names = [metric_key(metric.name) for metric in metrics]
    if not metrics or len(set(names)) < len(names):
        raise TemplateError(f"{METRICS_FILE}: expected at least one metric, with distinct names.")
    return metrics


def render_rollout(number: int, query: Query, rollout: Rollout) -> str:
    """Return a response with its query and the judge's remarks, each fenced."""
    scores = rollout.critique.scores if rollout.critique else ()
    # On one line each: a rationale with a list in it cannot pose as further scores.
    remarks = "\n".join(
        f"- {_one_line(one.metric)}: {round(one.score, 2):g} of 5. {_one_line(one.rationale)}" for one in scores
    )
    return (
        f"## Answer {number}\n\n{fence('query', query.transcript)}\n\n{fence('answer', rollout.response or '')}\n\n"
        f"{fence('remarks', remarks)}"
    )


def _render_rejected(number: int, rewrite: RejectedRewrite) -> str:
    scored = f"scored {rewrite.reward:.2f}, where its origin had {rewrite.parent_reward:.2f}"
    return f"Rejected {number}, {scored}:\n{fence('prompt', rewrite.prompt)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
