"""What the package and its command line load before they know what is asked of them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TELL = "print(*({'langgraph', 'openai', 'langchain_core', 'numpy', 'asyncio'} & set(sys.modules)), file=sys.stderr)"
HELP = "import sys, contextlib, drpo_graph.cli\nwith contextlib.suppress(SystemExit): drpo_graph.cli.main(['--help'])\n"


@pytest.mark.parametrize("code", ["import sys, drpo_graph\n", HELP], ids=["the package", "the help"])
def test_starting_loads_neither_langgraph_nor_a_client_nor_numpy(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code + TELL], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
