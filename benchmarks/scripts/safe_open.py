"""The floor for safetensors: the library itself lists the keys and shapes."""

from __future__ import annotations

import sys

from safetensors import safe_open

with safe_open(sys.argv[1], framework="numpy") as file:
    for key in file.keys():  # noqa: SIM118
        print(key, file.get_slice(key).get_shape())
