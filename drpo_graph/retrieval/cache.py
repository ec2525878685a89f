"""Keep embeddings by content: a text is embedded once, however often and by however many it is asked for."""

import asyncio
import hashlib
import sqlite3
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from langchain_core.embeddings import Embeddings

from drpo_graph.errors import EmbeddingsError, RunInterruptedError
from drpo_graph.models.embedding import is_usable
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.safety.private_files import create_private_file, make_private_folder
from drpo_graph.stop import SingleFlight

Kind = Literal["query", "document"]
"""Some models embed a question otherwise than what it is looked up in."""

_MAX_IN_MEMORY = 20_000
_LOCK_WAIT_S = 30.0
_MAX_VARIABLES = 500
_SCHEMA = "CREATE TABLE IF NOT EXISTS embeddings (key TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"


class CacheCounts(NamedTuple):
    """What a cache was asked for."""

    num_embedded: int = 0
    """Texts that the model embedded."""
    num_from_memory: int = 0
    """Texts that had been embedded in this process, or were just being."""
    num_from_file: int = 0


class CachedEmbeddings(Embeddings):
    """Embeddings that are kept by model and text, in memory and, if a file is given, beyond the process.

    Only hashes of texts are kept, but a vector tells about its text: the file is readable by its owner alone.

    Args:
        embeddings: What embeds a text that is not there.
        model: Names the model; vectors of different models are never mixed up.
        file: A SQLite file, made where it is missing; several processes may share it.
    """

    def __init__(self, embeddings: Embeddings, *, model: str, file: Path | None = None) -> None:
        self._embeddings, self._model = embeddings, model
        self._memory: OrderedDict[str, array[float]] = OrderedDict()
        self._in_flight: PerLoop[SingleFlight[str, dict[str, array[float]]]] = PerLoop(SingleFlight)
        self._lock = threading.Lock()
        self._counts = CacheCounts()
        self._size: int | None = None
        """Numbers per vector, once one is known."""
        self._file = _CacheFile(file) if file is not None else None

    @property
    def base_url(self) -> str | None:
        """Where texts that are not there go to be embedded; ``None`` where that is this process."""
        url: str | None = getattr(self._embeddings, "base_url", None)
        return url

    @property
    def counts(self) -> CacheCounts:
        """What it was asked for so far."""
        return self._counts

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the embeddings of texts that are looked up in."""
        return self._embed(texts, "document")

    def embed_query(self, text: str) -> list[float]:
        """Return the embedding of a text that is looked up."""
        return self._embed([text], "query")[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the embeddings of texts that are looked up in."""
        return await self._aembed(texts, "document")

    async def aembed_query(self, text: str) -> list[float]:
        """Return the embedding of a text that is looked up."""
        return (await self._aembed([text], "query"))[0]

    def _embed(self, texts: Sequence[str], kind: Kind) -> list[list[float]]:
        keys = [self._key(text, kind) for text in texts]
        text_by_key = dict(zip(keys, texts, strict=True))
        known = self._recall(keys)
        known.update(self._read([key for key in text_by_key if key not in known]))
        if missing := {key: text for key, text in text_by_key.items() if key not in known}:
            if kind == "query":
                vectors = [self._embeddings.embed_query(text) for text in missing.values()]
            else:
                vectors = self._embeddings.embed_documents(list(missing.values()))
            known.update(self._keep(missing, vectors))
        return [list(known[key]) for key in keys]

    async def _aembed(self, texts: Sequence[str], kind: Kind) -> list[list[float]]:
        in_flight = self._in_flight.get()
        keys = [self._key(text, kind) for text in texts]
        tasks = {key: in_flight.tasks[key] for key in keys if key in in_flight.tasks}
        self._count(num_from_memory=sum(key in tasks for key in keys))
        known = self._recall([key for key in keys if key not in tasks])
        here, own = known.keys() | tasks.keys(), None
        if missing := {key: text for key, text in zip(keys, texts, strict=True) if key not in here}:
            own = in_flight.begin(missing, self._fetch(missing, kind))
            tasks.update(dict.fromkeys(missing, own))
        for task in set(tasks.values()):
            try:
                # Shielded: others may wait for the same text.
                known.update(await asyncio.shield(task))
            except RunInterruptedError:
                if task is own:
                    raise
                # The run that it was embedded for has stopped, which is no reason to stop for another one.
                return await self._aembed(texts, kind)
        return [list(known[key]) for key in keys]

    async def _fetch(self, texts: Mapping[str, str], kind: Kind) -> dict[str, "array[float]"]:
        # With a file in a thread: another process may hold it, and the loop has other work.
        found = {} if self._file is None else await asyncio.to_thread(self._read, list(texts))
        missing = {key: text for key, text in texts.items() if key not in found}
        if not missing:
            return found
        if kind == "query":
            vectors = [await self._embeddings.aembed_query(text) for text in missing.values()]
        else:
            vectors = await self._embeddings.aembed_documents(list(missing.values()))
        if self._file is None:
            return self._keep(missing, vectors)
        return {**found, **await asyncio.to_thread(self._keep, missing, vectors)}

    def _key(self, text: str, kind: Kind) -> str:
        # A lone surrogate, which JSON may bring, has no UTF-8.
        content = "\0".join((self._model, kind, text)).encode("utf-8", "surrogatepass")
        return hashlib.sha256(content).hexdigest()

    def _recall(self, keys: Sequence[str]) -> dict[str, "array[float]"]:
        """Return what is in memory."""
        with self._lock:
            known = {key: self._memory[key] for key in keys if key in self._memory}
            for key in known:
                self._memory.move_to_end(key)
        self._count(num_from_memory=sum(key in known for key in keys))
        return known

    def _read(self, keys: Sequence[str]) -> dict[str, "array[float]"]:
        """Return what is in the file, if there is one."""
        found = self._file.read(keys) if self._file is not None and keys else {}
        self._count(num_from_file=len(found))
        self._remember(found)
        return found

    def _keep(self, missing: Mapping[str, str], vectors: Sequence[Sequence[float]]) -> dict[str, "array[float]"]:
        if len(vectors) != len(missing):
            raise EmbeddingsError(
                f"The embeddings model {self._model!r} gave {len(vectors)} vectors for {len(missing)} texts: expected "
                "one each. Use another model."
            )
        if not all(map(is_usable, vectors)):
            # Not kept: a server that is mended is asked again.
            raise EmbeddingsError(
                f"The embeddings model {self._model!r} gave a vector of what is no number, or of nothing but "
                "zeros. Mend its server, or use another model."
            )
        new = {key: array("d", vector) for key, vector in zip(missing, vectors, strict=True)}
        if self._file is not None:
            self._file.write(new)
        self._remember(new)
        self._count(num_embedded=len(new))
        return new

    def _remember(self, vectors: Mapping[str, "array[float]"]) -> None:
        with self._lock:
            sizes = {len(vector) for vector in vectors.values()} | ({self._size} if self._size else set())
            if len(sizes) > 1:
                raise EmbeddingsError(
                    f"The embeddings model {self._model!r} has vectors of {' and '.join(map(str, sorted(sizes)))} "
                    "numbers: two models were served under one name. Delete the file that embeddings_cache names, or "
                    "name another one."
                )
            self._size = next(iter(sizes), None)
            self._memory.update(vectors)
            while len(self._memory) > _MAX_IN_MEMORY:
                self._memory.popitem(last=False)

    def _count(self, *, num_embedded: int = 0, num_from_memory: int = 0, num_from_file: int = 0) -> None:
        more = (num_embedded, num_from_memory, num_from_file)
        with self._lock:
            self._counts = CacheCounts(*(one + two for one, two in zip(self._counts, more, strict=True)))


class _CacheFile:
    """Vectors in a SQLite file, opened for each batch: none is held open between, nor in another thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._explaining():
            make_private_folder(path.parent)
            create_private_file(path)
            with closing(self._connect()) as connection, connection:
                connection.execute(_SCHEMA)

    def read(self, keys: Sequence[str]) -> dict[str, "array[float]"]:
        """Return the vectors that are there."""
        found: dict[str, array[float]] = {}
        with self._explaining(), closing(self._connect()) as connection:
            for start in range(0, len(keys), _MAX_VARIABLES):
                some = keys[start : start + _MAX_VARIABLES]
                marks = ",".join("?" * len(some))
                rows = connection.execute(f"SELECT key, vector FROM embeddings WHERE key IN ({marks})", some)
                found.update((key, array("d", blob)) for key, blob in rows)
        return found

    def write(self, vectors: Mapping[str, "array[float]"]) -> None:
        """Add vectors; those that another process has added meanwhile are the same."""
        rows = [(key, vector.tobytes()) for key, vector in vectors.items()]
        with self._explaining(), closing(self._connect()) as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?)", rows)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_LOCK_WAIT_S)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say, where the file cannot be used, what to do."""
        try:
            yield
        except (sqlite3.Error, OSError, TypeError, ValueError) as error:
            said = f"cannot be used: {error}. Delete it, or name another file, then resume."
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                said = (
                    f"is held by another process, for {_LOCK_WAIT_S:g} s now. Wait for it, or name another file, then "
                    "resume."
                )
            raise EmbeddingsError(f"The embeddings cache {self._path} {said}") from error
