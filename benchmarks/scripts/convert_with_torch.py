"""What `ckptool convert FILE -o OUTPUT [--dtype fp16]` replaces: load, cast, save.

Usage: python convert_with_torch.py FILE OUTPUT [fp16]
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file


def main(path: str, output: str, half: bool) -> None:
    """Write the tensors of a file to another, cast if that is asked for."""
    if path.endswith(".safetensors"):
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if half:
        state = {key: x.half() if x.is_floating_point() else x for key, x in state.items()}
    if output.endswith(".safetensors"):
        save_file(dict(state), output)
    else:
        torch.save(state, output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "fp16" in sys.argv[3:])
