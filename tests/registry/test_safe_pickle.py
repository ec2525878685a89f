"""Foreign pickles are read as data: what is published comes through, and nothing that a pickle says is done."""

import builtins
import collections
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpo_graph.errors import PickleError
from drpo_graph.registry.safe_pickle import PickledObject, PickleLimits, load_pickle, load_pickle_file
from tests.support.command import ROOT

PUBLISHED = ROOT.parent / "shared" / "data" / "drpo"
MODELS = ("llama2-7b", "gpt-3.5-turbo", "mistral-7b-v0.1")
PLAIN = {"a": [1, -2, 2**40, 2.5, None, True, "é\U0001f600", b"\x00"], "t": (1, (2,), ()), "s": {1, "x"}, 3: {}}


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: object, *args: object) -> None:
        self._call = (function, args)

    def __reduce__(self) -> object:
        return self._call


def text_pickle(*lines: str) -> bytes:
    return "\n".join(lines).encode()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol_come_back_as_they_were(protocol: int) -> None:
    value = {**PLAIN, "s": [1]} if protocol < 3 else PLAIN
    if protocol < 3:
        value = json.loads(json.dumps({"a": value["a"][:-1]}))
    assert load_pickle(pickle.dumps(value, protocol=protocol)) == value


def test_sets_and_ordered_dictionaries_come_back() -> None:
    value = [frozenset({1}), {1, "a"}, collections.OrderedDict(a=1, b=[2])]
    assert load_pickle(pickle.dumps(value, protocol=2)) == value
    assert load_pickle(pickle.dumps(value, protocol=4)) == value


def test_a_shared_and_a_circular_list_stay_one() -> None:
    inner: list[object] = [1]
    inner.append(inner)
    read = load_pickle(pickle.dumps([inner, inner]))
    assert isinstance(read, list)
    assert read[0] is read[1]
    assert read[0][1] is read[0]


@pytest.mark.parametrize(("kind", "form", "number"), [("f8", "<d", 3.25), ("i8", "<q", -7), ("f4", "<f", 0.5)])
def test_a_number_of_numpy_comes_back_as_a_number(kind: str, form: str, number: float) -> None:
    raw = struct.pack(form, number)
    content = (
        b"\x80\x04cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n("
        + pickle.dumps(kind, 4)[2:-1].replace(b"\x94", b"")
        + b"\x89\x88tR(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbC"
        + bytes([len(raw)])
        + raw
        + b"\x86R."
    )
    assert load_pickle(content) == number


HOSTILE = {
    "os.system": pickle.dumps(Calls(os.system, "touch MARKER")),
    "eval": pickle.dumps(Calls(builtins.eval, "open('MARKER', 'w')")),
    "exec, protocol 0": pickle.dumps(Calls(builtins.exec, "open('MARKER', 'w')"), protocol=0),
    "subprocess": pickle.dumps(Calls(subprocess.Popen, ["touch", "MARKER"])),
    "getattr": text_pickle("cbuiltins", "getattr", "(cos", "path", "S'system'", "tR."),
    "getattr by dotted name": b"\x80\x04\x8c\x0breasoner.x\x8c\x08__init__\x93.",
    "import": text_pickle("c__builtin__", "__import__", "(S'os'", "tR."),
    "INST": text_pickle("(S'touch MARKER'", "ios", "system", "."),
    "OBJ": b"(cos\nsystem\nS'touch MARKER'\no.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"Psomewhere\n.",
    "persistent, binary": b"\x8c\x01xQ.",
    "buffer": b"\x80\x05\x97.",
    "bytearray": b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x.",
    "a class as a value": b"\x80\x04\x8c\x08builtins\x8c\x03set\x93.",
    "a class in a list": b"\x80\x04]\x8c\x08builtins\x8c\x03set\x93a.",
    "numpy's array": b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x0c_reconstruct\x93.",
    "a class called on a class": text_pickle("ccollections", "OrderedDict", "(cbuiltins", "set", "tR."),
    "a reconstructor of another class": text_pickle(
        "ccopyreg", "_reconstructor", "(cbuiltins", "object", "cbuiltins", "object", "NtR."
    ),
    "a state for a list": b"\x80\x04]}b.",
    "a state for a class": b"\x80\x04\x8c\x08builtins\x8c\x03set\x93}b.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_does_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    with pytest.raises(PickleError):
        load_pickle(HOSTILE[name])
    assert list(tmp_path.iterdir()) == []
    assert set(sys.modules) == modules


def test_the_first_of_them_would_do_something_with_python_s_own_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE["os.system"])
    assert [path.name for path in tmp_path.iterdir()] == ["MARKER"]


def test_a_refused_name_is_told_in_one_line() -> None:
    with pytest.raises(
        PickleError, match=r"^it names '(posix|nt)\.system', which is none of .* Nothing of it was run\.$"
    ):
        load_pickle(HOSTILE["os.system"])


def doubling(num_times: int) -> bytes:
    """A list of two of a list of two and so on: small to store, endless to walk."""
    steps = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) + b"0" for n in range(num_times))
    return b"\x80\x02]q\x000" + steps + b"h" + bytes([num_times]) + b"."


def numbers(count: int) -> bytes:
    """A list of different numbers, remembered as 0 and taken off the stack."""
    return b"\x80\x02]q\x00(" + b"".join(b"J" + struct.pack("<i", number) for number in range(count)) + b"e0"


def attributes(count: int) -> bytes:
    """A dictionary of as many texts, remembered as 0 and taken off the stack."""
    return (
        b"\x80\x04}q\x00(" + b"".join(b"\x8c\x04" + f"{number:04d}".encode() + b"N" for number in range(count)) + b"u0"
    )


NODE = b"creasoner.search_algo.beam_search\nBeamSearchNode\nq\x010"


def colliding() -> bytes:
    """A dictionary whose keys all have the same hash."""
    return pickle.dumps({number * (2**61 - 1): None for number in range(1, 200)}, protocol=4)


COPIES = "copies more values than it has instructions"
BOMBS = {
    "memo of billions": (b"\x80\x02]r\xff\xff\xff\x7f]q\x01h\x02.", "damaged"),
    "bytes beyond the end": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "damaged"),
    "text beyond the end": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
    "frame beyond the end": (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N", "ends before|damaged"),
    "a number without end": (b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b".", "more than 4096 bits"),
    "a number without end, in digits": (b"L" + b"9" * 100_000 + b"L\n.", "damaged|4096 bits"),
    "a deep list": (b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".", "deeper than 500"),
    "a very deep list": (b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "deeper than 500"),
    "a very deep tuple": (b"\x80\x02)" + b"\x85" * 50_000 + b".", "deeper than 500"),
    "doubling": (doubling(60), "unfolds to more than"),
    "sets of one list": (numbers(20_000) + b"c__builtin__\nset\nq\x010(" + b"h\x01h\x00\x85R" * 2000 + b"l.", COPIES),
    "sets that are thrown away": (
        numbers(20_000) + b"c__builtin__\nfrozenset\nq\x010" + b"h\x01h\x00\x85R0" * 2000 + b"N.",
        COPIES,
    ),
    "dictionaries of one list": (
        b"\x80\x02]q\x00("
        + b"NN\x86" * 20_000
        + b"e0ccollections\nOrderedDict\nq\x010"
        + b"h\x01h\x00\x85R0" * 2000
        + b"N.",
        COPIES,
    ),
    "states of one dictionary": (attributes(9000) + NODE + b"h\x01)\x81h\x00b0" * 2000 + b"N.", COPIES),
    "fields of one dictionary": (attributes(9000) + NODE + b"h\x01)h\x00\x920" * 2000 + b"N.", COPIES),
    "equal long keys": (
        b"\x80\x04" + (b"X" + struct.pack("<I", 10_000) + b"x" * 10_000) * 2 + b"q\x000}" + b"h\x00Ns" * 9 + b".",
        "damaged",
    ),
    "a name that unfolds": (doubling(60)[:-1] + b"h\x00\x93.", "damaged"),
    "a kind that unfolds": (
        doubling(60)[:-1] + b"q\x660cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nh\x66\x85RC\x01x\x86R.",
        "damaged",
    ),
    "keys of one hash": (colliding(), "damaged"),
    "marks without end": (b"(" * 50_000 + b".", "does not end with one value"),
    "empty": (b"", "damaged"),
    "no value": (b".", "does not end with one value"),
    "two values": (b"NN.", "does not end with one value"),
    "cut": (pickle.dumps(PLAIN)[:-3], "damaged|ends before"),
    "no pickle": (b"%PDF-1.4 hello", "damaged|instruction"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_asks_for_too_much_is_refused_at_little_cost(name: str) -> None:
    content, words = BOMBS[name]
    with pytest.raises(PickleError, match=words):
        load_pickle(content)


def test_a_list_that_is_used_often_is_measured_once() -> None:
    """As long as a file of other values of the same number of bytes takes, give or take."""

    def time_reading(content: bytes) -> float:
        began = time.process_time()
        assert "unfolds" in complaint(content) or content.endswith(b"N.")
        return time.process_time() - began

    length = 30_000
    shared = b"\x80\x02]q\x00(" + b"N" * length + b"e0(" + b"h\x00" * length + b"l."
    plain = b"\x80\x02]q\x00(" + b"N" * length + b"e0(" + b"K\x00" * length + b"l0N."
    assert time_reading(shared) < 10 * time_reading(plain)


def test_size_and_number_of_instructions_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(["x" * 10] * 100))
    with pytest.raises(PickleError, match=r"x\.pkl: it is larger than 50 bytes"):
        load_pickle_file(path, limits=PickleLimits(num_bytes=50))
    with pytest.raises(PickleError, match="more than 20 instructions"):
        load_pickle_file(path, limits=PickleLimits(num_steps=20))
    with pytest.raises(PickleError, match=r"missing\.pkl: No such file"):
        load_pickle_file(tmp_path / "missing.pkl")


def complaint(content: bytes) -> str:
    """Return why a pickle is refused; empty when it is not."""
    try:
        load_pickle(content)
    except PickleError as error:
        return str(error)
    return ""


@settings(max_examples=1000)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_value_or_a_pickle_error(content: bytes) -> None:
    assert "\n" not in complaint(content)


@settings(max_examples=1000)
@given(
    st.lists(st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes]), max_size=25),
    st.binary(max_size=6),
)
def test_any_instructions_are_a_value_or_a_pickle_error(codes: list[bytes], argument: bytes) -> None:
    assert "\n" not in complaint(argument.join(codes) + b".")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4) | st.tuples(inner)
    ),
    max_leaves=15,
)


@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_what_python_writes_comes_back(value: object, protocol: int) -> None:
    assert load_pickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("model", MODELS)
def test_the_published_results_come_through(model: str) -> None:
    path = PUBLISHED / model / "output.pkl"
    if not path.is_file():
        pytest.skip("the published results are not here")
    result = load_pickle_file(path)
    assert isinstance(result, PickledObject)
    assert result.name == "BeamSearchResult"
    levels = json.loads((PUBLISHED / model / "output.json").read_text())
    last = (PUBLISHED / model / "output.txt").read_text().strip()
    texts = set(walk(result))
    assert all(level["Prompt"] in texts for level in levels.values())
    assert any(last == text.strip() for text in texts)


def walk(root: object) -> list[str]:
    """Return every text in a value."""
    found, seen, stack = [], set(), [root]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            stack += value
        elif isinstance(value, PickledObject):
            stack += [value.args, value.state]
    return found
