"""Collections against a server of our own: what is right under a prompt stands in the prompts' names."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from drpo_graph import Query, build_settings
from drpo_graph.data.rows import AnsweredQuery
from drpo_graph.events.schema import Event
from drpo_graph.oirl.collection import TriedPrompt
from drpo_graph.runs.work import RunOptions
from drpo_graph.settings.settings import Settings
from tests.support.fake_server import FakeServer, Reply

PROMPTS = tuple(TriedPrompt(name=f"level-{n}", prompt=f"Be good at level {n}.") for n in range(3))


def answer(body: dict[str, object]) -> Reply:
    """Add up two numbers, rightly under a high level for most questions; play the critic's roles too."""
    messages = body["messages"]
    assert isinstance(messages, list)
    text = "\n".join(str(one["content"]) for one in messages)
    if "# Metrics to choose from" in text:
        return Reply([json.dumps({"reasoning": "r", "metrics": ["Clarity", "Accuracy"], "new_metrics": []})])
    if names := re.findall(r"^- ([A-Z][\w /-]*?):", text, flags=re.MULTILINE):
        number = int(re.findall(r"says (\d+)", text)[-1])
        if number == 13:
            return Reply(["no score"])
        scores = {name: {"rationale": "because", "score": 1 + number % 5} for name in names}
        return Reply([json.dumps(scores)])
    first, second = map(int, re.findall(r"What is (\d+) plus (\d+)\?", text)[-1])
    level = int(re.findall(r"level (\d)", text)[-1])
    seed = str(body.get("seed", ""))
    draw = hashlib.sha256(f"{first}/{second}/{seed}".encode()).digest()[0] % 3
    return Reply([f"Level {level} says {first + second + (draw > level)}."])


def sums(count: int) -> tuple[AnsweredQuery, ...]:
    """Return questions with their answers."""
    return tuple(
        AnsweredQuery(Query(id=f"q{n}", text=f"What is {n} plus {n * 7}?"), f"#### {n * 8}") for n in range(count)
    )


def write_sums(path: Path, count: int) -> None:
    """Write the same questions to a file."""
    lines = (
        json.dumps({"id": one.query.id, "question": one.query.text, "answer": one.reference}) for one in sums(count)
    )
    path.write_text("".join(f"{line}\n" for line in lines))


def write_prompts(path: Path, prompts: Sequence[TriedPrompt] = PROMPTS) -> None:
    """Write prompts to a file."""
    path.write_text("".join(f"{one.model_dump_json()}\n" for one in prompts))


def settings_for(server: FakeServer, **values: object) -> Settings:
    """Return settings whose models the server plays."""
    roles = {f"{role}_model": "openai:scripted" for role in ("base", "metrics", "critic")}
    return build_settings({**roles, "base_url": server.base_url, "probe": False, **values})


def options_in(folder: Path, events: list[Event] | None = None) -> RunOptions:
    """Return options of a run that is kept in a folder."""
    return RunOptions(checkpoint=folder / "runs.sqlite", sinks=(events.append,) if events is not None else ())


def expected_outcome(number: int, level: int) -> float:
    """Return what a question without a seed comes to under a level."""
    return float(hashlib.sha256(f"{number}/{number * 7}/".encode()).digest()[0] % 3 <= level)
