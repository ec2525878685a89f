"""The synthetic world behind our own request format: reads the rendered prompts, replies as the roles' models would."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from drpo_graph.models.request import Choice, Reply, Request
from drpo_graph.prompts import load_prompts
from drpo_graph.records import Role, Usage
from tests.support.fake_server import Reply as ServerReply
from tests.support.world import World

_FENCE = re.compile(r"<(?P<mark>(?P<label>[a-z]+)-[0-9a-f]{12})>\n(?P<text>.*?)\n</(?P=mark)>", re.DOTALL)
_REMARK = re.compile(r"^- (.+?): (\d+(?:\.\d+)?) of 5\.", re.MULTILINE)
_METRIC = re.compile(r"^- (.+?): ", re.MULTILINE)
_OPENINGS: dict[str, Role] = {
    load_prompts().templates[name].template.splitlines()[0]: role
    for name, role in (("select_metrics", "metrics"), ("critique", "critic"), ("rewrite_prompts", "optimizer"))
}


def role_of(messages: Sequence[Mapping[str, str]]) -> Role:
    """Return which role a request is for, by the template it was rendered from."""
    return _OPENINGS.get(messages[0]["content"].split("\n", 1)[0], "base")


@dataclass(frozen=True)
class Oracle:
    """Replies to rendered requests with what a world says."""

    world: World

    def reply(
        self, messages: Sequence[Mapping[str, str]], *, num_samples: int = 1, seed: int | None = None
    ) -> list[str]:
        """Return one text per sample."""
        role = role_of(messages)
        if role == "base":
            system = messages[0]["content"] if messages[0]["role"] == "system" else ""
            return [self.world.respond(system, messages[-1]["content"])] * num_samples
        fenced = [(found["label"], found["text"]) for found in _FENCE.finditer(messages[0]["content"])]
        if role == "metrics":
            return [json.dumps({"reasoning": "r", "metrics": self.world.select_metrics(_first(fenced, "query"))})]
        if role == "critic":
            return [self._criticise(fenced)]
        return self._rewrite(fenced, num_samples, seed)

    def _criticise(self, fenced: list[tuple[str, str]]) -> str:
        metrics = _METRIC.findall(_first(fenced, "metrics"))
        scores = self.world.critique(_first(fenced, "query"), _first(fenced, "answer"), metrics=metrics)
        if scores is None:
            return "I would rather not say."
        return json.dumps({name: {"rationale": f"{name} is {score}", "score": score} for name, score in scores.items()})

    def _rewrite(self, fenced: list[tuple[str, str]], num_samples: int, seed: int | None) -> list[str]:
        prompts = [text for label, text in fenced if label == "prompt"]
        queries = [text for label, text in fenced if label == "query"]
        remarks = [text for label, text in fenced if label == "remarks"]
        feedback = [
            (query, {name: round(float(score)) for name, score in _REMARK.findall(remark)})
            for query, remark in zip(queries, remarks, strict=True)
        ]
        rewrites = self.world.rewrite(
            prompts[-1], feedback, history=prompts[:-1], n=num_samples, seed=0 if seed is None else seed
        )
        return [json.dumps({"analysis": "a", "new_system_prompt": rewrite}) for rewrite in rewrites]


@dataclass
class OracleTransport:
    """A transport that asks the oracle in this process, and remembers every request."""

    oracle: Oracle
    requests: list[tuple[Role, str]] = field(default_factory=list)
    """Role and canonical JSON of each request, in order of arrival."""
    before: Callable[[Request], None] | None = None
    """Called with each request before it is answered, e.g. to count or to fail."""

    async def send(self, request: Request) -> Reply:
        """Return the oracle's reply."""
        if self.before is not None:
            self.before(request)
        self.requests.append((role_of(request.messages), json.dumps(request.key_parts(), sort_keys=True)))
        texts = self.oracle.reply(request.messages, num_samples=request.num_samples, seed=request.seed)
        return Reply(tuple(Choice(text=text) for text in texts), Usage(calls=1, prompt_tokens=10, completion_tokens=5))


def build_responder(
    seed: int = 0, missing_rate: float = 0.0, easy_rate: float = 0.0, padding: int = 0
) -> Callable[[dict[str, object]], ServerReply]:
    """Return a responder for the fake server; ``padding`` characters of filler are added to base responses."""
    oracle = Oracle(World(seed=seed, missing_rate=missing_rate, easy_rate=easy_rate))

    def respond(body: dict[str, object]) -> ServerReply:
        messages = body["messages"]
        assert isinstance(messages, list)
        number, body_seed = body.get("n") or 1, body.get("seed")
        assert isinstance(number, int)
        texts = oracle.reply(messages, num_samples=number, seed=body_seed if isinstance(body_seed, int) else None)
        if padding and role_of(messages) == "base":
            texts = [f"{text}\n{'filler ' * (padding // 7)}" for text in texts]
        return ServerReply(texts=texts)

    return respond


def _first(fenced: list[tuple[str, str]], label: str) -> str:
    return next(text for found, text in fenced if found == label)
