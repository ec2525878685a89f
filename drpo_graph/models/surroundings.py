"""What every HTTP client reads in the environment, checked before the first call: certificates, proxies, keys."""

import os
import ssl
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from drpo_graph.errors import ModelSpecError
from drpo_graph.safety.api_keys import find_unsendable

_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
_SOCKS = ("socks5", "socks5h")


def check_surroundings(environment: Mapping[str, str] | None = None) -> None:
    """Check what the environment says of certificates and proxies; by default, this process's.

    Raises:
        ModelSpecError: no HTTP client could be opened with it.
    """
    found = os.environ if environment is None else environment
    load_certificates(found)
    for name in _PROXY_VARIABLES:
        for own in (name, name.upper()):
            if value := found.get(own):
                _check_proxy(own, value)


def load_certificates(environment: Mapping[str, str] | None = None) -> ssl.SSLContext | Literal[True]:
    """Return the certificates that ``SSL_CERT_FILE`` names, for a client's ``verify``; ``True`` where it names none.

    Raises:
        ModelSpecError: the file has none, or cannot be read.
    """
    file = (os.environ if environment is None else environment).get("SSL_CERT_FILE")
    if not file:
        return True
    try:
        stat = Path(file).stat()
        return _load_bundle(file, stat.st_mtime_ns, stat.st_size)
    except OSError as error:  # As is an SSLError: the file has no certificate.
        reason = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise ModelSpecError(
            f"SSL_CERT_FILE names {file!r}, which cannot be used: {reason}. Correct the variable, or unset it."
        ) from error


@lru_cache(maxsize=4)
def _load_bundle(file: str, mtime_ns: int, size: int) -> ssl.SSLContext:
    # Tens of milliseconds, for each run and each of its clients. Date and size tell whether the file is another.
    return ssl.create_default_context(cafile=file)


def uses_socks() -> bool:
    """Return whether a proxy is named that only one of the HTTP clients can speak to."""
    named = [os.environ.get(own, "") for name in _PROXY_VARIABLES for own in (name, name.upper())]
    return any(value.partition("://")[0] in _SOCKS for value in named)


def check_key(key: str, variable: str) -> str:
    """Return a key that a request can carry.

    Raises:
        ModelSpecError: none can; names the variable that it comes from and what is wrong.
    """
    if not key:
        raise ModelSpecError(f"{variable} is set, and empty: give it the key, or unset it where the server wants none.")
    if wrong := find_unsendable(key):
        raise ModelSpecError(
            f"The key in {variable} holds {wrong}, which no request can carry: set it anew, the key alone."
        )
    return key


def _check_proxy(name: str, value: str) -> None:
    """Check a proxy; its value may hold a password, and is not repeated."""
    scheme = value.partition("://")[0] if "://" in value else "http"
    if scheme not in ("http", "https", *_SOCKS):
        raise ModelSpecError(
            f"{name} names a proxy of kind {scheme!r}: expected http, https, socks5 or socks5h. Correct or unset it."
        )
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:  # A port that is no number, a bracket left open.
        is_address = False
    if not is_address:
        raise ModelSpecError(f"{name} is no address: expected http://host:port. Correct the variable, or unset it.")
    if scheme in _SOCKS and find_spec("socksio") is None:
        raise ModelSpecError(
            f"{name} names a SOCKS proxy, which needs the package socksio. Run: pip install socksio, or unset it."
        )
