"""A gate that could not tell is kept in a file like any other."""

import numpy as np

from drpo_graph.oirl.gate import Gate, learn_gate


def test_gate_without_an_interval_comes_back_from_a_file() -> None:
    outcomes = np.full((12, 2), np.nan, dtype=np.float32)
    outcomes[np.arange(12), np.arange(12) % 2] = [1, 0] * 6
    rewards = np.tile(np.asarray([0.4, 0.9], dtype=np.float32), (12, 1))
    gate = learn_gate(rewards, outcomes, prices=np.zeros(2, dtype=np.float32))
    assert gate.interval_low is None
    assert not gate.is_open
    assert "tried under both" in gate.reason
    assert Gate.model_validate_json(gate.model_dump_json()) == gate
