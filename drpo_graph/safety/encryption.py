"""Encryption at rest: what is stored is sealed with a key that only the environment holds.

AES in EAX mode, as LangGraph's own encrypted serializer: what was changed, or put in another place, does not open.
Without a key nothing here is loaded.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any

from drpo_graph.errors import CheckpointError, UsageError
from drpo_graph.safety.installing import tell_install
from drpo_graph.safety.redaction import remember_secret

KEY_VARIABLE = "DRPO_ENCRYPTION_KEY"
"""64 hexadecimal digits."""
LANGGRAPH_VARIABLE = "LANGGRAPH_AES_KEY"
"""16, 24 or 32 characters, as LangGraph takes it."""

_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}")
_NONCE, _TAG = 16, 16


class Vault:
    """Seals texts with one key.

    Args:
        key: 16, 24 or 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, content: bytes, *, place: str) -> str:
        """Return the content so that only this key opens it, and only at this place."""
        return base64.b64encode(self.seal_bytes(content, place=place)).decode("ascii")

    def seal_bytes(self, content: bytes, *, place: str) -> bytes:
        """Return what :meth:`seal` does, as bytes."""
        cipher = self._cipher()
        cipher.update(place.encode("utf-8", "surrogatepass"))
        sealed, tag = cipher.encrypt_and_digest(content)
        raw: bytes = cipher.nonce + tag + sealed
        return raw

    def open(self, sealed: str, *, place: str) -> bytes:
        """Return what was sealed for this place.

        Raises:
            CheckpointError: it was sealed with another key or for another place, or it was changed.
        """
        try:
            raw = base64.b64decode(sealed, validate=True)
        except ValueError as error:
            raise _does_not_open(place) from error
        return self.open_bytes(raw, place=place)

    def open_bytes(self, raw: bytes, *, place: str) -> bytes:
        """Return what was sealed as bytes for this place.

        Raises:
            CheckpointError: it was sealed with another key or for another place, or it was changed.
        """
        try:
            cipher = self._cipher(raw[:_NONCE])
            cipher.update(place.encode("utf-8", "surrogatepass"))
            content: bytes = cipher.decrypt_and_verify(raw[_NONCE + _TAG :], raw[_NONCE : _NONCE + _TAG])
        except ValueError as error:
            raise _does_not_open(place) from error
        return content

    def _cipher(self, nonce: bytes | None = None) -> Any:
        from Crypto.Cipher import AES

        return AES.new(self._key, AES.MODE_EAX, nonce=nonce)


def _does_not_open(place: str) -> CheckpointError:
    shown = ascii(place[:200])
    return CheckpointError(f"An encrypted record ({shown}) does not open: it was changed, or sealed with another key.")


def read_vault(environment: Mapping[str, str]) -> Vault | None:
    """Return the vault whose key the environment holds, or ``None`` when it holds none.

    Raises:
        UsageError: the key has not the form of one, or what encrypts is not installed.
    """
    named = next((name for name in (KEY_VARIABLE, LANGGRAPH_VARIABLE) if name in environment), None)
    if named is None:
        return None
    text = environment[named]
    remember_secret(text)
    if named == KEY_VARIABLE and not _HEX_KEY.fullmatch(text):
        raise UsageError(f"{named}: expected 64 hexadecimal digits, e.g. those that `openssl rand -hex 32` prints.")
    key = bytes.fromhex(text) if named == KEY_VARIABLE else text.encode("utf-8", "surrogateescape")
    if len(key) not in (16, 24, 32):
        raise UsageError(f"{named}: expected 16, 24 or 32 characters, got {len(key)}.")
    try:
        import Crypto.Cipher.AES  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{named} asks for encryption, which needs: {tell_install('encryption')}.") from error
    return Vault(key)
