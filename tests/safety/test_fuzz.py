"""Any bytes are read as a value or refused with an error of ours; ``scripts/fuzz.py`` tries many more of them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fuzzing import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_a_value_or_an_error_of_ours(name: str) -> None:
    parts = st.sampled_from([content[at : at + 6] for content in SEEDS[name] for at in range(0, len(content), 3)])
    mixed = st.lists(parts | st.binary(max_size=3), max_size=30).map(b"".join)
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=700, deadline=None, suppress_health_check=health)(given(mixed)(TARGETS[name]))()


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_search_for_such_bytes_starts_from_is_read(name: str) -> None:
    for content in SEEDS[name]:
        TARGETS[name](content)
        for end in range(len(content)):
            TARGETS[name](content[:end])
