"""A password stays where it was given: in no file, table, message, command or process list."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from drpo_graph.errors import UsageError
from drpo_graph.runs.runner import RunOptions
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.postgres.uri import Address
from tests.storage.postgres.test_runs import START
from tests.support.command import KEY, Drpo, assert_one_line, finish, spawn_drpo, wait_for
from tests.support.fake_server import FakeServer
from tests.support.postgres import PostgresServer, dump

PASSWORD = "canary%2Fzqxw"
PLAIN = "canary/zqxw"


@pytest.fixture(scope="module")
def keeper(postgres: PostgresServer) -> str:
    """A user with a password."""
    postgres.make_user("keeper", PLAIN)
    return "keeper"


@pytest.fixture
def guarded(uri: str, keeper: str) -> str:
    """The URI of a database with a user who needs a password, which is not in it."""
    return uri.replace("postgres@", f"{keeper}@")


@pytest.fixture
def telling(guarded: str) -> str:
    """The same URI with the password in it."""
    return guarded.replace("keeper@", f"keeper:{PASSWORD}@")


def command_lines() -> Iterator[str]:
    """Yield the command line of every process that this one has started, and their children's."""
    for process in psutil.Process().children(recursive=True):
        try:
            yield " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue


def assert_no_canary(text: str) -> None:
    assert "canary" not in text
    assert "zqxw" not in text


@pytest.mark.slow
def test_a_password_in_the_uri_is_written_nowhere(
    drpo: Drpo, folder: Path, telling: str, guarded: str, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    said = ""
    for command in (
        (*START, "--logging-level", "DEBUG", "--display", "plain"),
        (*START, "--display", "plain"),
        ("resume", "t", "--display", "plain"),
        ("resume", "u", "--display", "plain"),
        ("runs", "--json"),
        ("show", "t", "--json"),
        ("show", "t"),
        ("events", "t", "--follow"),
        ("show", "u"),
    ):
        outcome = drpo(*command, "--checkpoint", telling)
        said += outcome.out + outcome.err
    assert f"drpo show t --checkpoint '{guarded}'" in said
    assert_no_canary(said)
    assert_no_canary(caplog.text)
    assert_no_canary(str(dump(uri)))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 6
    for path in files:
        assert_no_canary(path.read_bytes().decode("latin-1"))


@pytest.mark.slow
def test_a_password_given_by_the_environment_is_in_no_process_list(
    folder: Path, guarded: str, slow_world: FakeServer
) -> None:
    environment = {"OPENAI_BASE_URL": slow_world.base_url, "OPENAI_API_KEY": KEY, "PGPASSWORD": PLAIN}
    before = len(slow_world.log)
    run = spawn_drpo(*START, "--display", "none", "--checkpoint", guarded, folder=folder, environment=environment)
    wait_for(lambda: len(slow_world.log) - before >= 6)
    lines = list(command_lines())
    assert any("drpo_graph" in line for line in lines)
    assert_no_canary("\n".join(lines))
    outcome = finish(run)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_a_password_file_is_read_as_libpq_does(
    drpo: Drpo, folder: Path, guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "pgpass"
    file.write_text(f"*:*:*:keeper:{PLAIN}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    assert drpo(*START, "--display", "none", "--checkpoint", guarded).code == 0


def test_a_wrong_password_is_told_without_it(drpo: Drpo, guarded: str) -> None:
    wrong = guarded.replace("keeper@", "keeper:canary-zqxw@")
    for command in (("runs",), (*START, "--display", "none"), ("resume", "t", "--display", "none")):
        outcome = drpo(*command, "--checkpoint", wrong)
        assert_one_line(outcome, 1, guarded, "password authentication failed", "PGPASSWORD", "~/.pgpass")
        assert_no_canary(outcome.err)
    assert_one_line(drpo("runs", "--checkpoint", guarded), 1, "no password supplied", "PGPASSWORD")


NAMES = {
    "postgresql://u:canaryzqxw@h:5/d": "postgresql://u@h:5/d",
    "postgres://u:canary%40zqxw@h1:1,h2:2/d": "postgresql://u@h1:1,h2:2/d",
    "postgresql://u:canary?zqxw#x@h/d": "postgresql://u@h/d",
    "postgresql://u%40x:canaryzqxw@[::1]:5/d%20e": "postgresql://u%40x@[::1]:5/d%20e",
    "postgresql://h/d?user=u&password=canaryzqxw&sslmode=prefer": "postgresql://u@h/d?sslmode=prefer",
    "postgresql:///d?host=/tmp/x&sslpassword=canaryzqxw": "postgresql:///d?host=/tmp/x",
    "postgresql://:canaryzqxw@h/d": "postgresql://h/d",
    "postgresql:///d": "postgresql:///d",
}


@pytest.mark.parametrize("given", NAMES)
def test_the_name_of_a_database_is_its_uri_without_password(given: str) -> None:
    storage = find_storage(given)
    assert storage.name == NAMES[given]
    assert_no_canary(repr(storage) + str(storage) + repr(RunOptions(checkpoint=given)))
    assert find_storage(storage.name).name == storage.name


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://u:canary/zqxw@h/d",
        "postgresql://u:can@canary/zqxw@h/d",
        "postgresql://u:12/canaryzqxw@h/d",
        "postgresql://u:canary%zzzqxw@h/d",
        "postgresql://u:canaryzqxw@h:port/d?canary",
        "postgresql:u:canaryzqxw",
        "mysql://u:canaryzqxw@h/d",
        "host=h dbname=d password=canaryzqxw",
        "password = 'canary zqxw' host=h",
    ],
)
def test_a_uri_that_cannot_be_read_is_refused_without_repeating_it(given: str, drpo: Drpo) -> None:
    outcome = drpo("runs", "--checkpoint", given)
    assert_one_line(outcome, 2, "--checkpoint", "postgresql://")
    assert_no_canary(outcome.err)
    with pytest.raises(UsageError) as caught:
        find_storage(given)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_uri_given_as_a_path_makes_no_file() -> None:
    with pytest.raises(UsageError, match="--checkpoint") as caught:
        find_storage(Path("postgresql://u:canaryzqxw@h/d"))
    assert_no_canary(str(caught.value))


def test_a_password_of_a_few_letters_does_not_blot_out_messages() -> None:
    assert Address("postgresql://u:a@h/d").hide("a database is away") == "a database is away"
    assert Address("postgresql://u:away@h/d").hide("a database is away") == "a database is ***"
