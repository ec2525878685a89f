"""Which models are known to think, by their names or by the effort that is set."""

import pytest

from drpo_graph.settings.reasoning_models import is_reasoning
from drpo_graph.settings.settings import ReasoningEffort, RoleSettings


@pytest.mark.parametrize(
    ("model", "effort", "is_known"),
    [
        *((name, None, True) for name in ("openai:gpt-5-mini", "openai:gpt-5-2025-08-07", "openai:o3", "gpt-5.5")),
        *((name, None, True) for name in ("openrouter:openai/o4-mini", "vllm:openai/gpt-oss-20b", "xai:grok-4")),
        *((name, None, True) for name in ("google_genai:gemini-2.5-pro", "vllm:Qwen/Qwen3-30B-A3B-Thinking")),
        *((name, None, False) for name in ("openai:gpt-4o", "openai:gpt-5-chat-latest", "openai:gpt-5.1", "")),
        *((name, None, False) for name in ("xai:grok-4-fast-non-reasoning", "vllm:foo3", "local:smollm2")),
        ("openai:gpt-5.1", "low", True),
        ("openai:gpt-5-mini", "minimal", True),
        ("openai:gpt-5-mini", "none", False),
    ],
)
def test_model_is_known_to_reason_by_name_or_effort(model: str, effort: ReasoningEffort | None, is_known: bool) -> None:
    assert is_reasoning(RoleSettings(model=model, reasoning_effort=effort)) == is_known
