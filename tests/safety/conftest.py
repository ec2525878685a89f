import pytest

from tests.support.command import Drpo


@pytest.fixture
def drpo(capsys: pytest.CaptureFixture[str]) -> Drpo:
    """The command line in this process."""
    return Drpo(capsys)
