"""What an endpoint can be taken to hold in its prefix cache: the beginnings of the prompts it was sent."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from drpo_graph.prompts.library import Message

_BLOCK_CHARS = 128
"""About two blocks of vLLM's, of 16 tokens each."""
_MAX_BLOCKS = 32_768
"""What a server is taken to remember: about a million tokens."""


class PrefixMemory:
    """Which beginnings of prompts one endpoint was sent lately."""

    def __init__(self, max_blocks: int = _MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def count_shared(self, blocks: Sequence[bytes]) -> int:
        """Return how many of a prompt's first blocks the endpoint has seen."""
        for count, block in enumerate(blocks):
            if block not in self._blocks:
                return count
        return len(blocks)

    def remember(self, blocks: Sequence[bytes]) -> None:
        """Take a prompt in; what was used longest ago goes out."""
        for block in blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def forget(self) -> None:
        """Forget all: the server has gone, and its cache with it."""
        self._blocks.clear()


def prefix_blocks(messages: Sequence[Message]) -> list[bytes]:
    """Return one hash per block of the prompt, each over all that comes before it as well."""
    text = "\0".join(f"{message['role']}\0{message['content']}" for message in messages)
    running, blocks = hashlib.blake2b(digest_size=8), []
    for start in range(0, len(text) - _BLOCK_CHARS + 1, _BLOCK_CHARS):
        running.update(text[start : start + _BLOCK_CHARS].encode())
        blocks.append(running.digest())
    return blocks
