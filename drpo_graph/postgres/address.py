"""A database's URI, and what may be said of it: everything but its password."""

import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from drpo_graph.errors import UsageError

_SECRET = re.compile("password|secret|scram", re.IGNORECASE)
"""Parameters of libpq that are not to be seen, by name."""
_HIDDEN = "***"
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
            parts = urlsplit(uri)
            found = conninfo_to_dict(uri)
        except (ValueError, psycopg.ProgrammingError):
            # Without the cause: libpq repeats the part that it cannot read.
            raise UsageError(f"--checkpoint: this URI of a database cannot be read: {_FORM}") from None
        login, separator, hosts = parts.netloc.rpartition("@")
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        if parts.fragment or "@" in parts.path or any("@" in value for name, value in pairs if name != "user"):
            # What follows an unencoded character of a password would pass for a host, a database or a parameter.
            raise UsageError(f"--checkpoint: this URI of a database cannot be read: {_FORM}")
        self.conninfo = uri
        """For libpq, password included."""
        shown = "&".join(f"{name}={quote(value, safe='/,:@')}" for name, value in pairs if not _SECRET.search(name))
        user = login.partition(":")[0] + separator
        self.name = f"{parts.scheme}://{user}{hosts}{parts.path}{'?' if shown else ''}{shown}"
        """For people, and for commands that they may repeat."""
        given = {str(value) for name, value in found.items() if _SECRET.search(name) and value}
        raw = {login.partition(":")[2], *(value for name, value in pairs if _SECRET.search(name))}
        self._secrets = sorted(filter(None, given | raw | {unquote(one) for one in raw}), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return a text, such as a server's message, on one line and without the passwords of the URI."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return " ".join(text.split())

    def __repr__(self) -> str:
        """Return the URI without any password."""
        return self.name
