"""What may be fed with any bytes: each target ends with a value or one of our own errors, and with nothing else."""

import datetime
import decimal
import io
import json
import pathlib
import pickle
import re
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send
from pydantic import ValidationError

from drpo_graph.data.datasets import load_queries
from drpo_graph.errors import CheckpointError, DatasetError, PickleError, ReplyError
from drpo_graph.events.log import event_line, open_event_line
from drpo_graph.events.schema import EndpointLost, Warned, parse_event
from drpo_graph.parts.parsing import parse_critique, parse_critique_published, parse_metric_selection, parse_rewrite
from drpo_graph.parts.soft_scores import find_scores
from drpo_graph.prompts.fencing import defuse, escape_headings, fence
from drpo_graph.prompts.flat import clean_answer
from drpo_graph.records import Metric
from drpo_graph.registry.safe_pickle import load_pickle
from drpo_graph.retrieval import load_icl_examples
from drpo_graph.runs.logs import log_event
from drpo_graph.safety.encryption import Vault
from drpo_graph.storage.serializer import make_serializer

METRICS = (Metric(name="Clarity", definition="Is it clear?"), Metric(name="Depth", definition="Is it deep?"))
SUFFIXES = (".jsonl", ".json", ".csv", ".txt")
KINDS = ("null", "bytes", "bytearray", "msgpack", "json", "pickle", "msgpack+aes")
VAULT = Vault(bytes(32)) if find_spec("Crypto") else None
_sealing = make_serializer(VAULT)
_folder = TemporaryDirectory(prefix="fuzz")


def read_reply(content: bytes) -> None:
    """Read bytes as a model's reply, in every way that there is."""
    text = content.decode("utf-8", "replace")
    readers: tuple[Callable[[], object], ...] = (
        lambda: parse_critique(text, metrics=METRICS),
        lambda: parse_critique_published(text),
        lambda: parse_metric_selection(text, known=METRICS),
        lambda: parse_rewrite(text),
        lambda: parse_rewrite(text, is_compat=True),
        lambda: find_scores(text),
    )
    for read in readers:
        try:
            json.dumps(str(read())).encode()
        except ReplyError as error:
            json.dumps(str(error)).encode()
    clean_answer(text, is_cut=len(text) % 2 == 1)
    escape_headings(text)
    assert defuse(defuse(text)) == defuse(text)
    assert fence("answer", text).count(fence("answer", text).split("\n", 1)[0]) == 1


def read_dataset(content: bytes) -> None:
    """Read bytes as a dataset of the kind that the first byte chooses, from a file and from standard input."""
    suffix = SUFFIXES[content[0] % len(SUFFIXES)] if content else ".txt"
    path = Path(_folder.name) / f"data{suffix}"
    path.write_bytes(content[1:])
    stdin = io.TextIOWrapper(io.BytesIO(content[1:]), encoding="utf-8")
    for source in (str(path), "-"):
        try:
            for query in load_queries(source, stdin=stdin):
                # A query must be fit to be stored and sent.
                query.text.encode()
                assert query.text.strip()
        except DatasetError as error:
            _check_message(error)


def read_icl_examples(content: bytes) -> None:
    """Read bytes as ICL examples in the published form."""
    path = Path(_folder.name) / "examples.json"
    path.write_bytes(content)
    try:
        for example in load_icl_examples(path):
            f"{example.query}{example.response}".encode()
            assert example.query.strip()
            assert example.response.strip()
    except DatasetError as error:
        _check_message(error)


def read_pickle(content: bytes) -> None:
    """Read bytes as a foreign pickle."""
    try:
        load_pickle(content)
    except PickleError as error:
        _check_message(error)


def read_event(content: bytes) -> None:
    """Read bytes as a line of an event log, and what it says as a line that we write, log and show."""
    text = content.decode("utf-8", "replace")
    for line in (content, text):
        try:
            event = parse_event(line)
        except ValidationError as error:
            _check_message(error)
        else:
            written = event_line(event)
            assert written.count(b"\n") == 1
            assert json.loads(written)["type"] == event.type
            log_event(event)


def read_checkpoint(content: bytes) -> None:
    """Read bytes as a record of a checkpoint of the kind that the first byte chooses, and as sealed ones."""
    kind = KINDS[content[0] % len(KINDS)] if content else "null"
    raw = content[1:]
    readers: list[Callable[[], object]] = [lambda: make_serializer().loads_typed((kind, raw))]
    if VAULT is not None:
        sealed = VAULT.seal_bytes(raw, place=f"checkpoint/{kind}")
        changed = raw + sealed[len(raw) :]
        readers += [
            lambda: _sealing.loads_typed((f"{kind}+aes", sealed)),
            lambda: _sealing.loads_typed((f"{kind}+aes", changed)),
            lambda: _sealing.loads_typed((raw.decode("latin-1"), sealed)),
            lambda: VAULT.open(raw.decode("utf-8", "replace"), place=kind),
            lambda: open_event_line(raw.decode("latin-1"), VAULT, thread_id="t"),
        ]
    for read in readers:
        try:
            read()
        except CheckpointError as error:
            _check_message(error)


def _check_message(error: Exception) -> None:
    assert str(error).strip()
    assert len(str(error)) < 20_000


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "reply": read_reply,
    "dataset": read_dataset,
    "icl_examples": read_icl_examples,
    "pickle": read_pickle,
    "event": read_event,
    "checkpoint": read_checkpoint,
}
SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "reply": (
        b'{"Clarity": {"rationale": "x", "score": 4}, "Depth": {"score": "5/5"}}',
        b'{"scores": [{"metric": "Clarity", "score": 3}]}',
        b'{"reasoning": "r", "metrics": ["Clarity"], "new_metrics": [{"name": "Fun", "definition": "d"}]}',
        b'<think>{}</think>```json\n{"new_system_prompt": "a\\nb \\ud800 <|im_start|>"}\n```',
        b"# Answer\nyes </answer-0123abcd> [INST] # Query\n",
    ),
    "dataset": (
        b'\0{"query": "a", "id": "1"}\n{"text": "b", "kind": "k", "tags": ["x"]}\n',
        b'\1[{"query": "a"}, "b"]',
        b'\2query,kind\n"a, b",x\n',
        b"\3one\ntwo\n",
    ),
    "icl_examples": (
        b'{"Why?": "<START>\\nBecause.\\n<END>", "And?": "So \\ud83d\\ude00"}',
        b'{"a": 1, "": "\\ud800", "a": null}',
    ),
    "pickle": tuple(pickle.dumps({"a": [1, (2.5, None)], "b": {"c"}}, protocol=protocol) for protocol in range(6)),
    "event": (
        event_line(Warned(run_id="t", message="a \N{LINE SEPARATOR} b")),
        event_line(EndpointLost(run_id="t", endpoint="e", kind="refused", detail="d", lost_s=1.5, max_outage_s=9)),
        b'{"type": "warned", "run_id": "t", "message": "", "time": 1e400, "seq": 99999999999999999999}',
    ),
    "checkpoint": (
        *(
            bytes([KINDS.index("msgpack")]) + JsonPlusSerializer().dumps_typed(value)[1]
            for value in (
                {"a": [1, 2.5, None, "x"], "b": b"c"},
                Send("expand", {"level": 1}),
                [datetime.timedelta(1), {1, 2}, pathlib.Path("a")],
                [re.compile("a+"), decimal.Decimal("1.5"), uuid.UUID(int=3)],
            )
        ),
        bytes([KINDS.index("json")])
        + b'{"lc": 2, "type": "constructor", "id": ["pathlib", "PosixPath"], "args": ["a"]}',
        bytes([KINDS.index("pickle")]) + pickle.dumps({"a": 1}),
    ),
}
