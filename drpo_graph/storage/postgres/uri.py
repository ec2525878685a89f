"""A database's URI, and what may be said of it: everything but its password."""

import re
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from drpo_graph.errors import UsageError

_SECRET = re.compile("password|secret|scram", re.IGNORECASE)
"""Parameters of libpq that are not to be seen, by name."""
_HIDDEN = "***"
_MIN_SECRET = 4
"""In characters."""
# A connection whose other end is gone without a word is given up within seconds, where the system can do it.
_DEFAULTS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_FORM = (
    "expected postgresql://USER@HOST:PORT/DATABASE, with '@', '/', '?', '#' and '%' inside names and passwords "
    "percent-encoded. The URI is not shown, as it may hold a password."
)


class Address:
    """Where a database is; its text is the URI without any password."""

    __slots__ = ("_secrets", "conninfo", "name")

    def __init__(self, uri: str) -> None:
        """Read a URI.

        Raises:
            UsageError: it cannot be read; the message does not repeat it.
        """
        try:
            # libpq's own reading: what it takes for the password is what must not be seen.
            found = {name: str(value) for name, value in conninfo_to_dict(uri).items() if value is not None}
        except psycopg.ProgrammingError:
            # Without the cause: libpq repeats the part that it cannot read.
            found = {"port": "unread"}
        if not _is_plain(found):
            raise UsageError(f"--checkpoint: this URI of a database cannot be read: {_FORM}") from None
        self.conninfo = make_conninfo(uri, **{name: value for name, value in _DEFAULTS.items() if name not in found})
        """For libpq, password included."""
        self.name = _write({name: value for name, value in found.items() if not _SECRET.search(name)})
        """For people, and for commands that they may repeat."""
        # A shorter one would be found in every message, and tell by its marks what it is.
        secrets = {value for name, value in found.items() if _SECRET.search(name) and len(value) >= _MIN_SECRET}
        self._secrets = sorted(secrets | {quote(one, safe="") for one in secrets}, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return a text, such as a server's message, on one line and without the passwords of the URI."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return " ".join(text.split())

    def __repr__(self) -> str:
        """Return the URI without any password."""
        return self.name


def _is_plain(found: dict[str, str]) -> bool:
    """Return whether no part looks like the rest of a password that holds a character of the URI's form."""
    hosts = [one for one in found.get("host", "").split(",") if not one.startswith("/")]
    ports = found.get("port", "").replace(",", "")
    names = [found.get("dbname", ""), *hosts]
    return (not ports or ports.isdecimal()) and not any(mark in name for name in names for mark in "@/?#")


def _write(found: dict[str, str]) -> str:
    """Return the URI of a database."""
    rest = dict(found)
    user, database = rest.pop("user", ""), rest.pop("dbname", "")
    hosts, ports = rest.get("host", "").split(","), rest.get("port", "").split(",")
    servers = ""
    if len(ports) in (1, len(hosts)) and not any(one.startswith("/") for one in hosts):
        by_host = zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True)
        written = [(f"[{host}]" if ":" in host else quote(host), port) for host, port in by_host]
        servers = ",".join(f"{host}:{port}" if port else host for host, port in written)
        rest = {name: value for name, value in rest.items() if name not in ("host", "port")}
    parameters = "&".join(f"{name}={quote(value, safe='/,:')}" for name, value in rest.items())
    login = f"{quote(user, safe='')}@" if user else ""
    path = f"/{quote(database, safe='')}" if database or parameters else ""
    return f"postgresql://{login}{servers}{path}{'?' if parameters else ''}{parameters}"
