"""What the embedded model writes is bounded unless the user says otherwise; nobody else's is."""

import pytest

from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings

PLAIN = Settings()


def bounds_of(settings: Settings) -> tuple[int | None, int | None]:
    return settings.max_rationale_chars, settings.max_prompt_chars


def test_every_role_of_the_embedded_model_is_bounded() -> None:
    settings = build_settings({"model": "local:smollm2"})
    assert None not in bounds_of(settings)
    assert all(
        settings.role(role).max_tokens < PLAIN.base.max_tokens for role in ("base", "metrics", "critic", "optimizer")
    )


@pytest.mark.parametrize("model", ["openai:m", "vllm:m", "anthropic:m", ""])
def test_other_models_are_not(model: str) -> None:
    settings = build_settings({"model": model})
    assert bounds_of(settings) == (None, None)
    assert settings.critic.max_tokens == PLAIN.critic.max_tokens


def test_only_the_roles_that_it_has_count() -> None:
    as_base = build_settings({"model": "openai:m", "base_model": "local:smollm2"})
    assert bounds_of(as_base) == (None, None)
    assert as_base.base.max_tokens < as_base.critic.max_tokens == PLAIN.critic.max_tokens
    as_critic = build_settings({"model": "openai:m", "critic_model": "local:smollm2"})
    assert as_critic.max_rationale_chars is not None
    assert as_critic.max_prompt_chars is None


def test_what_is_given_stays() -> None:
    given = {
        "model": "local:smollm2",
        "max_rationale_chars": None,
        "max_prompt_chars": 900,
        "critic": {"max_tokens": 7},
    }
    settings = build_settings(given)
    assert bounds_of(settings) == (None, 900)
    assert settings.critic.max_tokens == 7


def test_published_search_keeps_to_its_own() -> None:
    settings = build_settings({"model": "local:smollm2", "compat": "drpo"})
    assert bounds_of(settings) == (None, None)
    assert settings.base.max_tokens == PLAIN.base.max_tokens
