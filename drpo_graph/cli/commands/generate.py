"""``drpo generate``: ask a model with its optimised prompt."""

import asyncio
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

from drpo_graph.cli import options as flags
from drpo_graph.cli.completion import complete_thread
from drpo_graph.cli.inputs import read_overrides, read_prompt
from drpo_graph.cli.option_groups import (
    Only,
    OptionGroup,
    SettingGroup,
    argument,
    option,
    parse_sampling,
    takes_options,
)
from drpo_graph.cli.places import DEFAULT_PLACE, find_place_of, open_prompts
from drpo_graph.display.streams import quiet, write_lines
from drpo_graph.errors import UsageError
from drpo_graph.safety.terminal import InertStream, inert_json
from drpo_graph.safety.text_files import read_stream
from drpo_graph.safety.texts import clean_surrogates
from drpo_graph.settings.layers import build_settings, merge_settings
from drpo_graph.settings.retrieval import RetrievalSettings
from drpo_graph.settings.settings import Settings

if TYPE_CHECKING:
    from drpo_graph.inference import AlignedModel, GivenPrompt
    from drpo_graph.inference.routers import RouterFile
    from drpo_graph.records import RunResult
    from drpo_graph.registry import PromptRegistry
    from drpo_graph.storage.run_list import RunRecord

_DEFAULTS: dict[str, object] = {"max_outage_s": 0, "max_retries": 3}
"""Less than a run's: somebody waits for the answer."""


class _Model(flags.Models):
    """The model that is asked."""

    model: str | None = option(None, "MODEL", help="provider:model; with --run, that run's by default.")


class _Prompt(OptionGroup, panel="System prompt"):
    """Where the system prompt comes from."""

    system_prompt: str | None = option(None, "TEXT", help="Prompt of your own; @FILE reads it from a file.")
    run: str | None = option(None, "THREAD", help="The prompt that a finished run found.", completes=complete_thread)
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE
    router: Path | None = option(
        None, "FILE", help="The router that chooses a prompt for the query, of drpo oirl train."
    )
    prompt: str | None = option(
        None, "NAME", help="The registry's prompt for the model of this name; for MODEL by default."
    )
    registry: Path | None = option(
        None, "DIR", help="Folder of optimised prompts; drpo_prompts by default, if there is one."
    )

    def check(self) -> None:
        """Raise ``UsageError`` when several prompts are named."""
        named = {
            "--system-prompt": self.system_prompt,
            "--run": self.run,
            "--router": self.router,
            "--prompt": self.prompt,
        }
        given = [flag for flag, value in named.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: a response has one system prompt. Give one of them.")


class _Sampling(SettingGroup, panel="Sampling"):
    """How the response is sampled."""

    temperature: str | None = option(None, "X", help="0 by default; none sends none.", parser=parse_sampling)
    top_p: str | None = option(None, "X", help="1 by default; none sends none.", parser=parse_sampling)
    max_tokens: int | None = option(None, "N", help="Longest response, in tokens.")
    stop: list[str] | None = option(None, "TEXT", help="Ends the response; may be given several times.")


@takes_options
def generate_command(
    *,
    query: str | None = argument(None, "QUERY", help="What the model is asked; '-' reads it from stdin."),
    model: Annotated[_Model, Only("model", "base_url", "api_key_env")],
    source: _Prompt,
    num_icl: int | None = option(
        None,
        "N",
        help="ICL examples shown, 0 to 5; with --run as many as there, else 0, by default.",
        panel="ICL examples",
    ),
    likeness: Annotated[flags.Search, Only("icl_examples", "embeddings", "embeddings_base_url")],
    sampling: _Sampling,
    sources: Annotated[flags.Sources, Only("overrides")],
    as_json: flags.JsonOption = False,
) -> None:
    """Answer QUERY with a model and its optimised prompt, and print the response as it comes.

    The system prompt is your own, a finished run's, one that a router chooses for the query, or the registry's for the
    model; a model that the registry does not know gets the general alignment prompt.
    """
    source.check()
    asked = _read_query(query)
    text = read_prompt(source.system_prompt) if source.system_prompt is not None else None
    of_run, result = None, None
    if source.run is not None:
        of_run, result = asyncio.run(_read_run(source.run, source.checkpoint))
    settings = _read_settings(
        {**model.given(), **sampling.given()},
        of_run.settings if of_run else None,
        likeness=likeness.given(),
        overrides=sources.overrides,
    )
    # A router's queries are embedded, too.
    is_own = text is not None or result is not None
    unused = [one for one in likeness.given() if is_own or one != "embeddings_base_url"]
    wanted = _count_examples(num_icl, settings, given=unused)
    prompts = open_prompts(source.registry)
    chosen: GivenPrompt | None = text if text is not None else result or _open_router(source.router, settings)
    if chosen is None:
        chosen = _find_prompt(prompts, source.prompt)
    aligned = _make_model(settings, chosen, registry=prompts, num_icl=wanted)
    asyncio.run(_answer(aligned, asked, as_json=as_json))


def _count_examples(num_icl: int | None, settings: Settings, *, given: Collection[str]) -> int:
    """Return how many ICL examples are shown: as many as is said, else as the run showed."""
    from drpo_graph.inference.model import MAX_NUM_ICL  # Loads LangChain.

    if num_icl is None and settings.ret_icl and settings.k > MAX_NUM_ICL:
        raise UsageError(
            f"The run showed {settings.k} ICL examples, and at most {MAX_NUM_ICL} can be shown here. Say how many with "
            "--num-icl."
        )
    wanted = num_icl if num_icl is not None else settings.k if settings.ret_icl else 0
    if given and not wanted:
        named = ", ".join(f"--{one.replace('_', '-')}" for one in given)
        raise UsageError(f"{named}: no ICL example is shown. Say how many are with --num-icl.")
    return wanted


def _read_query(query: str | None) -> str:
    if query is None and sys.stdin.isatty():
        raise UsageError("No query. Give it as an argument, or '-' to read it from stdin.")
    try:
        text = clean_surrogates(read_stream(sys.stdin) if query is None or query == "-" else query)
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
    """Return the settings of the one model that is asked, which a run's is as in the run, unless another is given."""
    base: dict[str, object] = {}
    kept: dict[str, object] = {}
    if of_run is not None:
        kept = {name: getattr(of_run, name) for name in ("templates", *RetrievalSettings.model_fields)}
        if given.get("model") in (None, of_run.base.model):
            base = of_run.base.model_dump()
    given_base = {"base": {**base, **given}}
    settings = build_settings(merge_settings(_DEFAULTS, kept, likeness, given_base, read_overrides(overrides)))
    if not settings.base.model:
        raise UsageError("No model. Give --model, e.g. openai:gpt-5-mini, vllm:NAME or local:smollm2.")
    return settings


async def _read_run(thread_id: str, place: str) -> "tuple[RunRecord, RunResult]":
    """Return a finished run, which leaves its settings and its prompt to inference."""
    storage = find_place_of(thread_id, place)
    from drpo_graph.runs.reading import load_finished  # Loads LangGraph.

    return await load_finished(storage, thread_id, advice="Give its out_*.json with --icl-examples.")


def _open_router(path: Path | None, settings: Settings) -> "RouterFile | None":
    if path is None:
        return None
    from drpo_graph.inference.routers import RouterFile, load_router  # Loads LangChain.

    router = RouterFile(path, open_router=partial(load_router, base_url=settings.embeddings_base_url))
    router.open()  # What is wrong with it is told before anything is asked.
    return router


def _find_prompt(registry: "PromptRegistry | None", name: str | None) -> "GivenPrompt | None":
    if name is None:
        return None
    if registry is None:
        raise UsageError(f"--prompt {name}: there is no folder of prompts. Name it with --registry.")
    return registry.require(name)


def _make_model(
    settings: Settings, prompt: "GivenPrompt | None", *, registry: "PromptRegistry | None", num_icl: int
) -> "AlignedModel":
    from drpo_graph.inference import AlignedModel
    from drpo_graph.inference.model import check_num_icl  # Loads LangChain.
    from drpo_graph.retrieval.retriever import open_retriever

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
    if not as_json:
        await _print_stream(aligned, query, quiet(sys.stdout))
        return
    prompt = await aligned.achoose_prompt(query)
    message = await aligned.ainvoke(query, system_prompt=prompt)
    metadata = message.response_metadata
    choice = metadata.get("system_prompt_choice")
    told = {
        "response": str(message.text),
        "model": metadata["model_name"],
        "finish_reason": metadata["finish_reason"],
        "system_prompt": prompt.text,
        "system_prompt_source": metadata["system_prompt_source"],
        **({} if choice is None else {"system_prompt_choice": choice}),
        "examples": metadata["icl_queries"],
        "usage": dict(message.usage_metadata or {}),
    }
    write_lines(sys.stdout, inert_json(json.dumps(told, indent=2, ensure_ascii=False)))


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
