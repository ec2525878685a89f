"""One chat message, as the prompts' renderers make it and the clients send it."""

from typing import Literal, TypedDict


class Message(TypedDict):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str
