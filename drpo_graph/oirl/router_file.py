"""A router in a file: arrays and JSON, no pickle, with a hash of all that is in it."""

import hashlib
import io
import json
import lzma
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from drpo_graph.errors import RewardModelError, UsageError
from drpo_graph.oirl.ensemble import Calibration, Ensemble
from drpo_graph.oirl.features import NUM_CHEAP, EmbeddedTexts, FeatureSpace, FeatureTable
from drpo_graph.oirl.gate import Gate
from drpo_graph.oirl.portfolio import Portfolio
from drpo_graph.oirl.rewards.catalogue import load_reward_model
from drpo_graph.oirl.router_parts import KnownPrompt, Policy, Provenance, RouterParts
from drpo_graph.records import Record
from drpo_graph.retrieval import CachedEmbeddings, make_embeddings
from drpo_graph.retrieval.local import MiniLMEmbeddings
from drpo_graph.safety.private_files import make_private_folder, write_atomically
from drpo_graph.safety.texts import shorten

FORMAT: Final = 1
_ARCHIVE: Final = b"PK\x03\x04"
_HEADER, _HASH = "header", "hash"
_SPACE = ("probe", "query_mean", "query_scale", "prompt_mean", "prompt_scale")

# What numpy and zipfile raise where bytes are not as they should be: RuntimeError for what looks encrypted or is
# compressed in an unknown way.
_UNREADABLE: Final = (
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
)


class _Header(Record):
    """All of a router that is no array."""

    format: int
    provenance: Provenance
    gate: Gate
    prompts: tuple[KnownPrompt, ...]
    calibration: Calibration
    num_members: int = Field(ge=1)
    price_per_1k: float
    policy: Policy
    portfolio: Portfolio | None = None


def write_router(path: Path, parts: RouterParts) -> None:
    """Write a router, replaced in one step.

    Raises:
        RewardModelError: the file cannot be written, or its name does not end in ``.npz``.
    """
    check_router_path(path)
    header = _Header(
        format=FORMAT,
        provenance=parts.provenance,
        gate=parts.gate,
        prompts=parts.prompts,
        calibration=parts.ensemble.calibration,
        num_members=len(parts.ensemble.members),
        price_per_1k=parts.price_per_1k,
        policy=parts.policy,
        portfolio=parts.portfolio,
    )
    arrays: dict[str, NDArray[np.generic]] = {
        _HEADER: np.frombuffer(header.model_dump_json().encode(), dtype=np.uint8),
        "prompt_vectors": parts.prompt_vectors,
        "reference": parts.reference,
        **{f"space/{name}": getattr(parts.space, name) for name in _SPACE},
    }
    for number, member in enumerate(parts.ensemble.members):
        arrays |= {f"member{number}/{name}": value for name, value in member.save().items()}
    arrays[_HASH] = np.frombuffer(_hash(arrays), dtype=np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # Its stub takes a keyword of its own for one of these.
    try:
        make_private_folder(path.parent)
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise RewardModelError(f"{path} cannot be written ({error.strerror or error}). Name another file.") from error


def check_router_path(path: Path) -> None:
    """Do nothing with the name of a router's file.

    Raises:
        RewardModelError: it does not end in ``.npz``: it may be the file of something else.
    """
    if path.suffix.lower() != ".npz":
        raise RewardModelError(f"{path} cannot be written (its name does not end in .npz). Name another file.")


def read_router(path: Path) -> RouterParts:
    """Return the router in a file.

    Raises:
        RewardModelError: the file is missing, damaged, or no router.
        UsageError: its reward model needs an extra that is missing.
    """
    arrays = _read_arrays(path)
    try:
        if not {_HASH, _HEADER} <= arrays.keys():
            raise RewardModelError(f"{path} holds no router (it holds other arrays). Name a file that was saved.")
        stored = arrays.pop(_HASH).tobytes()
        if stored != _hash(arrays):
            raise RewardModelError(f"{path} is damaged: its content is not what was saved. Train the router again.")
        header = _read_header(path, arrays[_HEADER].tobytes())
        members = tuple(
            load_reward_model(header.provenance.reward_model, _within(arrays, f"member{number}/"))
            for number in range(header.num_members)
        )
        space = FeatureSpace(header.provenance.embeddings, *(_floats(arrays, f"space/{name}") for name in _SPACE))
        vectors, reference = _floats(arrays, "prompt_vectors"), _floats(arrays, "reference")
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise RewardModelError(f"{path} holds no router ({shorten(str(error))}). Train one anew.") from error
    parts = RouterParts(
        provenance=header.provenance,
        space=space,
        ensemble=Ensemble(members, header.calibration),
        gate=header.gate,
        prompts=header.prompts,
        prompt_vectors=vectors,
        reference=reference,
        price_per_1k=header.price_per_1k,
        policy=header.policy,
        portfolio=header.portfolio,
    )
    if not _is_coherent(parts):
        raise RewardModelError(f"{path} holds no router (its arrays do not fit each other). Train one anew.")
    return parts


def _is_coherent(parts: RouterParts) -> bool:
    """Return whether the arrays of a file, which need not be ours, have sizes that work together."""
    space, num_prompts = parts.space, len(parts.prompts)
    cheap = {one.shape for one in (space.query_mean, space.query_scale, space.prompt_mean, space.prompt_scale)}
    if cheap != {(NUM_CHEAP,)} or space.probe.ndim != 1 or not 0 <= parts.gate.best < num_prompts:
        return False
    size = len(space.probe)
    if parts.prompt_vectors.shape != (num_prompts, size) or parts.reference.shape[1:] != (size + NUM_CHEAP,):
        return False
    texts = EmbeddedTexts(tuple(one.text for one in parts.prompts), parts.prompt_vectors)
    try:
        found = parts.ensemble.predict(FeatureTable(parts.reference[:1], space.of_prompts(texts)))
    except (ValueError, IndexError):
        return False
    return found.shape == (len(parts.ensemble.members), len(parts.reference[:1]), num_prompts)


def open_embeddings(name: str, *, base_url: str | None = None, file: Path | None = None) -> Embeddings:
    """Return the embeddings that a router names, cached.

    Args:
        name: As :func:`~drpo_graph.retrieval.make_embeddings` takes it.
        base_url: Where an OpenAI-compatible endpoint is.
        file: Keeps them beyond this process; they are kept in memory alone when absent.

    Raises:
        UsageError: they cannot be opened here: nobody knows the name, or an extra or a key is missing.
        EmbeddingsError: the file cannot be used.
    """
    embeddings = make_embeddings(name, base_url=base_url)
    if isinstance(embeddings, MiniLMEmbeddings):
        embeddings.check_installed()
    return CachedEmbeddings(embeddings, model=name, file=file)


def open_embeddings_of(provenance: Provenance, *, base_url: str | None = None) -> Embeddings:
    """Return the embeddings that a router was learned with.

    A file that somebody else wrote must not decide where queries are sent, nor may they go to the usual address where
    they were embedded elsewhere before: another address is the caller's word.

    Args:
        provenance: The router's.
        base_url: Where they are served; where that is usual, when absent.

    Raises:
        UsageError: they were served elsewhere and no address is given, or as :func:`open_embeddings`.
    """
    embeddings = open_embeddings(provenance.embeddings, base_url=base_url)
    learned_at, found_at = provenance.embeddings_base_url, getattr(embeddings, "base_url", None)
    if base_url is None and learned_at is not None and learned_at != found_at:
        raise UsageError(
            f"The router was learned with embeddings {provenance.embeddings!r} at {learned_at}, and queries would be "
            f"sent to {found_at}. Say where they are served: --embeddings-base-url URL, or "
            "PromptRouter.load(path, base_url=URL)."
        )
    return embeddings


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        # Numpy takes what is no archive for an array or a pickle, and says so.
        with path.open("rb") as file:
            if file.read(len(_ARCHIVE)) != _ARCHIVE:
                raise ValueError("it is no .npz file")
        found = np.load(path, allow_pickle=False)
        with found as content:
            return {name: content[name] for name in content.files}
    except OSError as error:
        raise RewardModelError(f"{path} cannot be read ({error.strerror or error}). Name a router's file.") from error
    except _UNREADABLE as error:
        raise RewardModelError(
            f"{path} holds no router ({shorten(str(error))}). Name a file that was saved."
        ) from error


def _read_header(path: Path, text: bytes) -> _Header:
    try:
        fields = json.loads(text)
        found = fields.get("format") if isinstance(fields, dict) else None
        if found != FORMAT:
            raise RewardModelError(f"{path} has format {found!r}, this version reads {FORMAT}. Train the router again.")
        return _Header.model_validate(fields)
    except (ValidationError, RecursionError) as error:
        raise RewardModelError(f"{path} holds no router ({shorten(str(error))}). Train one anew.") from error


def _within(arrays: dict[str, NDArray[np.generic]], start: str) -> dict[str, NDArray[np.generic]]:
    return {name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)}


def _floats(arrays: dict[str, NDArray[np.generic]], name: str) -> NDArray[np.float32]:
    return np.asarray(arrays[name], dtype=np.float32)


def _hash(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape} ".encode())
        total.update(array.tobytes())
    return total.digest()
