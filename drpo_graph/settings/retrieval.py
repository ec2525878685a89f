"""Which ICL examples the model that is aligned is shown beside the system prompt. Part of the settings."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from drpo_graph.records import Record
from drpo_graph.settings.fingerprint import Operational, RetrievalOnly

DEFAULT_EMBEDDINGS = "local:all-minilm-l6-v2"


def _reject_key(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("expected the name of an environment variable, not a key: settings are stored")
    return value


VariableName = Annotated[str, AfterValidator(_reject_key)]
"""The name of an environment variable."""


class RetrievalSettings(Record):
    """Whether examples are shown, how many, and what finds them."""

    ret_icl: RetrievalOnly[bool] = False
    """Whether responses are sampled with ICL examples that resemble the query."""
    k: RetrievalOnly[int] = Field(2, ge=1)
    """Examples per query at most."""
    icl_examples: Operational[Path | None] = None
    """A JSON file of responses by query, as published, or a dataset with responses; the bundled ones when absent."""
    embeddings: RetrievalOnly[str] = DEFAULT_EMBEDDINGS
    """What likeness is measured by: ``local:all-minilm-l6-v2``, or ``openai:NAME`` of an OpenAI-compatible server."""
    embeddings_base_url: Operational[str | None] = None
    """Base URL of that server's API, ending in ``/v1``; OpenAI's own when absent."""
    embeddings_api_key_env: Operational[VariableName | None] = None
    """Name of the environment variable that holds its key; OpenAI's own when absent."""
    embeddings_cache: Operational[Path | None] = None
    """A file that keeps embeddings for other runs; they are kept in memory alone when absent."""

    @field_validator("embeddings_base_url")
    @classmethod
    def _reject_password(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError("must not hold a password, settings are stored; name a variable: embeddings_api_key_env")
        return value
