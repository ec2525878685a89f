"""Read ICL examples: the published JSON form, an object of responses by query."""

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from drpo_graph.errors import DatasetError
from drpo_graph.records import ICLExample
from drpo_graph.safety.text_files import read_text
from drpo_graph.safety.texts import clean_surrogates

_START, _END = "<START>", "<END>"
_BUNDLED = "icl_examples.json"
_MAX_TOLD = 20


def load_icl_examples(path: Path) -> tuple[ICLExample, ...]:
    """Return the examples of a file in the published form, ``{query: response}``, in its order.

    The marks ``<START>`` and ``<END>`` around a published response are left out.

    Raises:
        DatasetError: the file cannot be read, is no such object, or entries cannot be used; they are named.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DatasetError(f"ICL examples {path}: {reason}. Give a JSON file of responses by query.") from error
    return _parse(text, name=str(path))


def bundled_icl_examples() -> tuple[ICLExample, ...]:
    """Return the examples that come with the package."""
    try:
        text = files("drpo_graph.data").joinpath(_BUNDLED).read_text(encoding="utf-8")
    except (OSError, ModuleNotFoundError) as error:
        raise DatasetError(f"The bundled ICL examples {_BUNDLED} are missing: install drpo-graph again.") from error
    return _parse(text, name=_BUNDLED)


def digest_examples(examples: Sequence[ICLExample]) -> str:
    """Return the SHA-256 of examples in their order."""
    pairs = [[example.query, example.response] for example in examples]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _parse(text: str, *, name: str) -> tuple[ICLExample, ...]:
    try:
        # As pairs, because an object would silently keep the last of two equal queries.
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"ICL examples {name}: it is no JSON: {error}.") from error
    if not isinstance(pairs, _Pairs):
        raise DatasetError(f"ICL examples {name}: expected an object of responses by query.")
    if not pairs:
        raise DatasetError(f"ICL examples {name}: there is none in it.")
    problems, response_by_query = [], dict[str, str]()
    for number, (query, response) in enumerate(pairs, 1):
        cleaned = _clean(response) if isinstance(response, str) else ""
        problem = "the same query stands above" if query in response_by_query else _find_problem(query, cleaned)
        if problem:
            problems.append(f"{name}: entry {number}: {problem}")
        response_by_query.setdefault(query, cleaned)
    if problems:
        told = problems[:_MAX_TOLD]
        told += [f"and {len(problems) - len(told)} more"] if len(problems) > len(told) else []
        raise DatasetError(f"ICL examples {name}: {len(problems)} entries cannot be used.", tuple(told))
    return tuple(ICLExample(query=query, response=response) for query, response in response_by_query.items())


def _find_problem(query: str, response: str) -> str | None:
    if not query.strip() or not response:
        return "expected a query and a response, both texts that are not blank"
    if clean_surrogates(query + response) != query + response:
        return "half of a character, a lone surrogate, can neither be stored nor sent"
    return None


class _Pairs(list[tuple[str, object]]):
    """The entries of a JSON object, in their order."""


def _clean(response: str) -> str:
    return response.strip().removeprefix(_START).removesuffix(_END).strip()
