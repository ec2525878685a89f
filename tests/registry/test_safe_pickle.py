"""Foreign pickles are read as data: what is published comes through, and nothing that a pickle says is done."""

import builtins
import copyreg
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
from drpo_graph.registry.safe_pickle import PickledObject, load_pickle, load_pickle_file
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
    # Before protocol 4, bytes and sets are calls of functions.
    value = PLAIN if protocol > 3 else {"a": PLAIN["a"][:-1], "t": PLAIN["t"], 3: {}}
    assert load_pickle(pickle.dumps(value, protocol=protocol)) == value


def test_a_shared_and_a_circular_list_stay_one() -> None:
    inner: list[object] = [1]
    inner.append(inner)
    read = load_pickle(pickle.dumps([inner, inner]))
    assert isinstance(read, list)
    assert read[0] is read[1]
    assert read[0][1] is read[0]


def test_a_number_of_numpy_does_not_keep_a_result_from_being_read() -> None:
    content = (
        b"\x80\x04]cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(\x8c\x02f8\x89\x88tR(K\x03\x8c\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbC\x08" + struct.pack("<d", 3.25) + b"\x86RaX\x01\0\0\0xa."
    )
    number, text = load_pickle(content)
    assert isinstance(number, PickledObject)
    assert number.args[1] == struct.pack("<d", 3.25)
    assert text == "x"


NODE = b"creasoner.search_algo.beam_search\nBeamSearchNode\n"
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
    "extension that was used before": b"\x80\x02\x82\xf1.",
    "persistent": b"Psomewhere\n.",
    "persistent, binary": b"\x8c\x01xQ.",
    "buffer": b"\x80\x05\x97.",
    "bytearray": b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x.",
    "a set of a list": pickle.dumps({1}, protocol=2),
    "numpy's array": b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x0c_reconstruct\x93.",
    "an attribute of a class": NODE.replace(b"Node", b"Node.__init__") + b".",
    "a class as a value": NODE + b".",
    "a class in a list": b"]" + NODE + b"a.",
    "a class called on a class": NODE + NODE + b"\x85R.",
    "a call of an object": NODE + b")\x81)R.",
    "a state for a list": b"\x80\x04]}b.",
    "a state for a class": NODE + b"}b)\x81.",
    "attributes for a class": NODE + b"N}\x8c\x04nameK\x01s\x86b)\x81.",
    "an attribute's value for an object": NODE + b")}\x8c\x05stateNs\x92.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_does_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Python keeps what an extension's number stood for, and hands it out unasked.
    monkeypatch.setitem(copyreg._extension_cache, 0xF1, os.system)
    modules = set(sys.modules)
    with pytest.raises(PickleError):
        load_pickle(HOSTILE[name])
    assert list(tmp_path.iterdir()) == []
    assert set(sys.modules) == modules
    # Nor has it left anything behind in our classes.
    made = load_pickle(NODE + b")\x81.")
    assert isinstance(made, PickledObject)
    assert (made.name, made.args, made.state) == ("BeamSearchNode", (), None)


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
    """A tuple of different numbers, remembered as 0 and taken off the stack."""
    return b"(" + b"".join(b"J" + struct.pack("<i", number) for number in range(count)) + b"tq\x000"


TUPLES = b")" + b"\x85" * 100_000
SAME_HASH = {number * (2**61 - 1): None for number in range(1, 200)}
LONG_TEXT = b"X" + struct.pack("<I", 10_000) + b"x" * 10_000
BAD_KEY = "key that is neither"
BOMBS = {
    "memo of billions": (b"\x80\x02]r\xff\xff\xff\x7f]q\x01h\x02.", "damaged"),
    "memo of billions, in digits": (b"]p2147483647\n.", "damaged"),
    "bytes beyond the end": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "damaged"),
    "text beyond the end": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
    "frame beyond the end": (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N", "damaged"),
    "a bytearray beyond the end": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
    "a number without end": (b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b".", "more than 4096 bits"),
    "a number without end, in digits": (b"L" + b"9" * 100_000 + b"L\n.", "damaged|4096 bits"),
    "a float beyond any": (b"F1e999\n.", "damaged"),
    "a deep list": (b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".", "deeper than 500"),
    "a very deep list": (b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "deeper than 500"),
    "a very deep tuple": (TUPLES + b".", "deeper than 500"),
    "a very deep object": (NODE + b"q\x000" + b")" + b"q\x010h\x00h\x01\x85\x81" * 50_000 + b".", "deeper than 500"),
    "deep where it is shared": (
        b"]q\x00" + b"]q\x01h\x00aq\x020h\x01q\x000" * 600 + b"0(h\x00h\x00l.",
        "deeper than 500",
    ),
    "a very deep key": (b"}" + TUPLES + b"Ns.", BAD_KEY),
    "a very deep key among others": (b"}(NN" + TUPLES + b"Nu.", BAD_KEY),
    "a very deep key of old": (b"(" + TUPLES + b"Nd.", BAD_KEY),
    "a very deep key from the memo": (b"}" + TUPLES + b"q\x010h\x01Ns.", BAD_KEY),
    "a very deep key, twice": (b"}" + TUPLES + b"2s.", BAD_KEY),
    "a very deep member of a set": (b"\x8f(" + TUPLES + b"\x90.", BAD_KEY),
    "a very deep member of a frozen set": (b"(" + TUPLES + b"\x91.", BAD_KEY),
    "keys of one hash": (pickle.dumps(SAME_HASH, protocol=4), BAD_KEY),
    "equal long keys": (LONG_TEXT * 2 + b"q\x000}" + b"h\x00Ns" * 9 + b".", BAD_KEY),
    "doubling": (doubling(60), "unfolds to more than"),
    "a name that unfolds": (doubling(60)[:-1] + b"h\x00\x93.", "damaged"),
    "objects of one tuple": (numbers(20_000) + NODE + b"q\x010(" + b"h\x01h\x00\x81" * 2000 + b"l.", "damaged"),
    "marks without end": (b"(" * 50_000 + b".", "does not end with one value"),
    "empty": (b"", "damaged"),
    "no value": (b".", "does not end with one value"),
    "two values": (b"NN.", "does not end with one value"),
    "more taken than there is": (b"NN(\x86.", "damaged"),
    "cut": (pickle.dumps(PLAIN)[:-3], "damaged"),
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


def test_a_state_of_many_objects_is_not_copied_for_each() -> None:
    began = time.process_time()
    content = b"]q\x00(" + b"N" * 20_000 + b"e0" + NODE + b"q\x010(" + b"h\x01)\x81h\x00b" * 5000 + b"l."
    assert "unfolds to more than" in complaint(content)
    assert time.process_time() - began < 5


def test_an_instruction_across_a_frame_s_end_hides_nothing() -> None:
    """Python's own reader drops what the frame had left, takes the next sign, and follows what was text: a deep key."""
    text = b"0" + TUPLES + b"Ns"
    content = b"}\x95" + struct.pack("<Q", 6) + b"X\x02\0\0\0ABV" + text + b"\ns."
    assert load_pickle(content) == {"AB": text.decode("latin-1")}


def test_size_and_number_of_instructions_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(["x" * 10] * 100))
    with pytest.raises(PickleError, match=r"x\.pkl: it is larger than 50 bytes"):
        load_pickle_file(path, max_bytes=50)
    with pytest.raises(PickleError, match="more than 20 instructions"):
        load_pickle(path.read_bytes(), max_steps=20)
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
