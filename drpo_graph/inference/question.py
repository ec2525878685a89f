"""One question to an aligned model: all that decides the request, but for the form that the model needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from pydantic import JsonValue

from drpo_graph.inference.client import Answer
from drpo_graph.inference.prompt_choice import ChosenPrompt
from drpo_graph.prompts.library import Message, ResponseFormat
from drpo_graph.records import ICLExample, Usage
from drpo_graph.settings.settings import RoleSettings


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, with what around it, and how the response is sampled."""

    role: RoleSettings
    prompt: ChosenPrompt
    system_prompt: str
    """The chosen prompt, and what the conversation's own system messages say."""
    history: Sequence[Message]
    query: str
    examples: Sequence[ICLExample]

    def render(self, form: ResponseFormat) -> list[Message]:
        """Return the request, as the search makes it."""
        return form.render(
            system_prompt=self.system_prompt, query=self.query, examples=self.examples, history=self.history
        )

    def describe(self, answer: Answer, *, model: str) -> dict[str, JsonValue]:
        """Return where a response comes from, for its message."""
        return {
            "model_name": model,
            "finish_reason": answer.finish_reason,
            "system_prompt_source": self.prompt.source,
            "icl_queries": [example.query for example in self.examples],
        }


def as_usage(usage: Usage) -> UsageMetadata:
    """Return a usage as LangChain's messages carry it."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )
