"""An agent that answers with an optimised prompt and ICL examples, beside instructions and a tool of its own.

The middleware puts prompt and examples into each model request; the agent's history holds neither. Without further
flags the prompt is the general one. ``--registry`` takes the prompt that was optimised for the model, ``--run`` the one
that a run has found. Examples are chosen by shared words, or by likeness with ``--embeddings``.

Run ``python examples/aligned_agent.py "What is rain?" --model local:smollm2``: no key, no GPU. So small a model hardly
ever calls a tool; a larger one, asked how many letters a word has, does.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.tools import tool

from drpo_graph import DRPOError, ExampleRetriever, ICLExample, RunResult
from drpo_graph.agents import AlignmentMiddleware, open_chat_model
from drpo_graph.registry import PromptRegistry
from drpo_graph.retrieval import EmbeddingRetriever, bundled_icl_examples, make_embeddings

INSTRUCTIONS = "Use the tools where they help. Answer in one or two sentences."


@tool
def count_letters(word: str) -> int:
    """Count the letters of a word."""
    return sum(map(str.isalpha, word))


class BySharedWords:
    """Finds the examples that share most words with a query: no model, no key."""

    async def retrieve(self, query: str, *, k: int) -> Sequence[ICLExample]:
        """Return the ``k`` examples with most words of the query."""
        words = set(query.lower().split())
        return sorted(bundled_icl_examples(), key=lambda one: -len(words & set(one.query.lower().split())))[:k]


async def ask(model: BaseChatModel, question: str, middleware: AlignmentMiddleware) -> str:
    """Print what the agent does and says as it comes, and return its answer."""
    agent = create_agent(model, tools=[count_letters], system_prompt=INSTRUCTIONS, middleware=[middleware])
    answer = ""
    async for part, _ in agent.astream({"messages": [("user", question)]}, stream_mode="messages"):
        if isinstance(part, ToolMessage):
            print(f"[{part.name}: {part.text}]")
            answer = ""
        elif isinstance(part, AIMessageChunk):
            print(part.text, end="", flush=True)
            answer += part.text
    print()
    return answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask the agent from the command line; 0 when it has answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--model", required=True, help="provider:model, e.g. openai:gpt-5-mini or local:smollm2")
    parser.add_argument("--base-url", help="OpenAI-compatible API, ends in /v1")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest reply (default: 256)")
    parser.add_argument("--registry", type=Path, help="folder of optimised prompts, by model name")
    parser.add_argument("--run", type=Path, help="result.json of a run, whose prompt is used")
    parser.add_argument("--num-icl", type=int, default=2, help="ICL examples, 0 to 5 (default: 2)")
    parser.add_argument("--embeddings", help="e.g. local:all-minilm-l6-v2 or openai:text-embedding-3-small")
    args = parser.parse_args(arguments)
    try:
        retriever: ExampleRetriever = BySharedWords()
        if args.embeddings:
            retriever = EmbeddingRetriever(bundled_icl_examples(), make_embeddings(args.embeddings))
        middleware: AlignmentMiddleware = AlignmentMiddleware(
            RunResult.model_validate_json(args.run.read_bytes()) if args.run else None,
            registry=PromptRegistry(args.registry) if args.registry else None,
            retriever=retriever,
            num_icl=args.num_icl,
            model=args.model,
        )
        model = open_chat_model(args.model, base_url=args.base_url, temperature=0, max_tokens=args.max_tokens)
        asyncio.run(ask(model, args.question, middleware))
    except DRPOError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
