"""A new key in a file that one user can read, or the user's own."""

import os
from pathlib import Path

import pytest

from drpo_graph.errors import ServeError, UsageError
from drpo_graph.serving.keys import ServerKey, borrow_key, new_key


def test_a_new_key_is_readable_by_its_user_alone_and_goes_in_the_end(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        with new_key(tmp_path / "new" / "key") as key:
            assert key.file is not None
            assert key.file.stat().st_mode & 0o777 == 0o600
            assert key.file.read_text() == f"{key.value}\n"
            assert key.value not in repr(key)
            with new_key(tmp_path / "other") as other:
                assert other.value != key.value
    finally:
        os.umask(former)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_key_never_goes_into_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServeError, match="Key file"), new_key(tmp_path / "key"):
        pytest.fail("it was made")
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "key").is_symlink()


def test_the_users_own_key_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    assert borrow_key(variable="K", file=None, environment={"K": "secret"}) == ServerKey(value="secret", variable="K")
    assert borrow_key(variable=None, file=file, environment={}) == ServerKey(value="from-file", file=file)
    assert borrow_key(variable=None, file=None, environment={"VLLM_API_KEY": "x"}) is None


@pytest.mark.parametrize(
    ("variable", "content", "part"),
    [
        ("K", "x", "give one of them"),
        ("NONE", None, "NONE: there is no key"),
        (None, "", "there is no key"),
        (None, "two words", "one word"),
        (None, "schlüssel", "one word"),
        (None, None, "No such file"),
    ],
)
def test_a_key_that_is_none_is_told(variable: str | None, content: str | None, part: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    given = file if variable is None or content is not None else None
    with pytest.raises(UsageError, match=part):
        borrow_key(variable=variable, file=given, environment={"K": "x"})
