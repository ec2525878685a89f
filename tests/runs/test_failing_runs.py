"""A run that fails says why: the error that ended it, never that of a sibling which was merely stopped by it."""

import asyncio
from dataclasses import dataclass, field

import pytest

from drpo_graph.errors import ModelCallError
from drpo_graph.models.request import Reply, Request
from tests.support.oracle import Oracle, OracleTransport
from tests.support.searches import fake_settings, run_search
from tests.support.world import World


@dataclass
class FailingTransport(OracleTransport):
    """Fails one call for good; the others take their time, so that siblings end in every order around it."""

    num_good: int = 0
    oracle: Oracle = field(default_factory=lambda: Oracle(World(seed=3)))

    async def send(self, request: Request) -> Reply:
        """Return the oracle's reply after a few turns of the loop, or raise."""
        index = len(self.requests)
        reply = await super().send(request)
        if index == self.num_good:
            raise KeyRefusedError
        await asyncio.sleep(0.001 * (index % 4))
        return reply


class KeyRefusedError(Exception):
    """What a client library raises for a wrong key."""

    status_code = 401

    def __str__(self) -> str:
        """Return a server's words."""
        return "Incorrect API key provided."


@pytest.mark.parametrize("num_good", range(24))
async def test_a_failed_run_raises_what_ended_it(num_good: int) -> None:
    transport = FailingTransport(num_good=num_good)
    settings = fake_settings(depth=3, beam_size=2, n_actions=3, queries_per_level=2)
    with pytest.raises(ModelCallError, match="API key"):
        await run_search(settings, World(seed=3), World(seed=3).train_queries, transport=transport)
    assert len(transport.requests) > num_good
