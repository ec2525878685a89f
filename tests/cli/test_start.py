"""What the command line loads before it knows what is asked of it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = "import sys, drpo_graph.cli; print(*({'langgraph', 'openai', 'langchain_core'} & set(sys.modules)))"


def test_starting_loads_neither_langgraph_nor_a_client() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
