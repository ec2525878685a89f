"""``drpo generate``: ask a model with its optimised prompt."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

from drpo_graph.cli import generate_options as own
from drpo_graph.cli import options as flags
from drpo_graph.cli.inputs import read_overrides, read_prompt
from drpo_graph.cli.places import DEFAULT_PLACE, find_place_of, open_prompts
from drpo_graph.display.streams import quiet
from drpo_graph.errors import UsageError
from drpo_graph.safety.terminal import InertStream, inert_json
from drpo_graph.safety.texts import clean_surrogates
from drpo_graph.settings.layers import build_settings, merge_settings
from drpo_graph.settings.retrieval import RetrievalSettings
from drpo_graph.settings.settings import Settings

if TYPE_CHECKING:
    from drpo_graph.inference import AlignedModel, GivenPrompt
    from drpo_graph.records import RunResult
    from drpo_graph.registry import PromptRegistry

_DEFAULTS: dict[str, object] = {"max_outage_s": 0, "max_retries": 3}
"""Less than a run's: somebody waits for the answer."""


def generate_command(
    query: own.QueryArgument = None,
    model: own.ModelOption = None,
    base_url: flags.BaseUrlOption = None,
    api_key_env: flags.ApiKeyEnvOption = None,
    system_prompt: own.SystemPromptOption = None,
    run: own.RunOption = None,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
    prompt: own.PromptOption = None,
    registry: own.RegistryOption = None,
    num_icl: own.NumICLOption = None,
    icl_examples: flags.IclExamplesOption = None,
    embeddings: flags.EmbeddingsOption = None,
    embeddings_base_url: flags.EmbeddingsBaseUrlOption = None,
    temperature: own.TemperatureOption = None,
    top_p: own.TopPOption = None,
    max_tokens: own.MaxTokensOption = None,
    stop: own.StopOption = None,
    overrides: flags.OverridesOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Answer QUERY with a model and its optimised prompt, and print the response as it comes.

    The system prompt is your own, a finished run's, or the registry's for the model; a model that the registry does not
    know gets the general alignment prompt.
    """
    named = {"--system-prompt": system_prompt, "--run": run, "--prompt": prompt}
    given = [flag for flag, value in named.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: a response has one system prompt. Give one of them.")
    asked = _read_query(query)
    text = read_prompt(system_prompt) if system_prompt is not None else None
    found = asyncio.run(_read_run(run, checkpoint)) if run is not None else None
    place = {"model": model, "base_url": base_url or None, "api_key_env": api_key_env}
    sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop": stop or None}
    likeness = {"icl_examples": icl_examples, "embeddings": embeddings, "embeddings_base_url": embeddings_base_url}
    settings = _read_settings(
        {**place, **sampling}, found.settings if found else None, likeness=likeness, overrides=overrides
    )
    wanted = _count_examples(num_icl, settings, given=[flag for flag, value in likeness.items() if value is not None])
    prompts = open_prompts(registry)
    chosen = text if text is not None else found.result if found else _find_prompt(prompts, prompt)
    aligned = _make_model(settings, chosen, registry=prompts, num_icl=wanted)
    asyncio.run(_answer(aligned, asked, as_json=as_json))


def _count_examples(num_icl: int | None, settings: Settings, *, given: Sequence[str]) -> int:
    """Return how many ICL examples are shown: as many as is said, else as the run showed.

    Raises:
        UsageError: it showed more than can be, or flags say how to find examples of which none is shown.
    """
    from drpo_graph.inference import MAX_NUM_ICL  # Loads LangChain.

    if num_icl is None and settings.ret_icl and settings.k > MAX_NUM_ICL:
        raise UsageError(
            f"The run showed {settings.k} ICL examples, and at most {MAX_NUM_ICL} can be shown here. Say how many with "
            "--num-icl."
        )
    wanted = num_icl if num_icl is not None else settings.k if settings.ret_icl else 0
    if given and not wanted:
        flags = ", ".join(f"--{one.replace('_', '-')}" for one in given)
        raise UsageError(f"{flags}: no ICL example is shown. Say how many are with --num-icl.")
    return wanted


def _read_query(query: str | None) -> str:
    if query is None and sys.stdin.isatty():
        raise UsageError("No query. Give it as an argument, or '-' to read it from stdin.")
    try:
        text = clean_surrogates(sys.stdin.read() if query is None or query == "-" else query)
    except UnicodeDecodeError as error:
        raise UsageError("The query on stdin is not UTF-8 text.") from error
    if not text.strip():
        raise UsageError("The query is blank.")
    # The line's end is the shell's, not the query's.
    return text.rstrip("\n")


def _read_settings(
    given: Mapping[str, object],
    of_run: Settings | None,
    *,
    likeness: Mapping[str, object],
    overrides: Sequence[str] | None,
) -> Settings:
    """Return the settings of the one model that is asked.

    Args:
        given: Fields of its role, by name; ``None`` where the command line says nothing.
        of_run: The settings of the run whose prompt is used: its model is asked as in the run, unless another is given.
        likeness: Settings of the search for examples, by name; ``None`` where the command line says nothing.
        overrides: ``NAME=VALUE`` texts.

    Raises:
        UsageError: a value cannot be used, or there is no model.
    """
    base: dict[str, object] = {}
    if of_run is not None and given["model"] in (None, of_run.base.model):
        base = of_run.base.model_dump()
    base.update((name, value) for name, value in given.items() if value is not None)
    kept: dict[str, object] = {}
    if of_run is not None:
        kept = {name: getattr(of_run, name) for name in ("templates", *RetrievalSettings.model_fields)}
    kept.update((name, value) for name, value in likeness.items() if value is not None)
    settings = build_settings(merge_settings(_DEFAULTS, kept, {"base": base}, read_overrides(overrides)))
    if not settings.base.model:
        raise UsageError("No model. Give --model, e.g. openai:gpt-4o-mini, vllm:NAME or local:smollm2.")
    return settings


class _Found(NamedTuple):
    """What a finished run leaves to inference."""

    settings: Settings
    result: "RunResult"


async def _read_run(thread_id: str, place: str) -> _Found:
    storage = find_place_of(thread_id, place)
    from drpo_graph.cli.reading import load_run  # Loads LangGraph.

    stored = await load_run(storage, thread_id)
    if stored.record.kind != "search":
        raise UsageError(
            f"Run {thread_id!r} optimises ICL examples: it has no prompt. Give its out_*.json with --icl-examples."
        )
    if stored.result is None:
        raise UsageError(f"Run {thread_id!r} has no result yet: it is {stored.record.status}. `drpo resume` ends it.")
    return _Found(stored.record.settings, stored.result)


def _find_prompt(registry: "PromptRegistry | None", name: str | None) -> "GivenPrompt | None":
    if name is None:
        return None
    if registry is None:
        raise UsageError(f"--prompt {name}: there is no folder of prompts. Name it with --registry.")
    return registry.require(name)


def _make_model(
    settings: Settings, prompt: "GivenPrompt | None", *, registry: "PromptRegistry | None", num_icl: int
) -> "AlignedModel":
    from drpo_graph.inference import AlignedModel, check_num_icl  # Loads LangChain.
    from drpo_graph.retrieval import open_retriever

    check_num_icl(num_icl, has_retriever=True)
    return AlignedModel(
        model=settings.base.model,
        settings=settings,
        system_prompt=prompt,
        registry=registry,
        num_icl=num_icl,
        retriever=open_retriever(settings.model_copy(update={"ret_icl": True})) if num_icl else None,
    )


async def _answer(aligned: "AlignedModel", query: str, *, as_json: bool) -> None:
    stdout = quiet(sys.stdout)
    if as_json:
        message = await aligned.ainvoke(query)
        told = _describe(aligned, str(message.text), message.response_metadata, dict(message.usage_metadata or {}))
        stdout.write(f"{inert_json(json.dumps(told, indent=2, ensure_ascii=False))}\n")
        stdout.flush()
        return
    await _print_stream(aligned, query, stdout)


async def _print_stream(aligned: "AlignedModel", query: str, stdout: TextIO) -> None:
    shown, has_text = InertStream(), False
    try:
        async for chunk in aligned.astream(query):
            if piece := shown.feed(str(chunk.text)):
                stdout.write(piece)
                stdout.flush()
                has_text = True
    finally:
        if has_text:
            stdout.write(f"{shown.end()}\n")
            stdout.flush()


def _describe(
    aligned: "AlignedModel", response: str, metadata: Mapping[str, object], usage: Mapping[str, object]
) -> dict[str, object]:
    return {
        "response": response,
        "model": metadata["model_name"],
        "finish_reason": metadata["finish_reason"],
        "system_prompt": aligned.chosen_prompt.text,
        "system_prompt_source": metadata["system_prompt_source"],
        "examples": metadata["icl_queries"],
        "usage": usage,
    }
