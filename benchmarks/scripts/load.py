"""Loading a checkpoint into a model that it fits: by ckptool, or as torch does it.

Usage: python load.py FILE ARCH ckptool|torch|mmap

Prints the seconds that loading took, without the imports and the making of the model, and the peak
memory in MiB.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings

import torch
from effdet import EfficientDet, get_efficientdet_config

from ckptool import load_into

path, arch, how = sys.argv[1:]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model = EfficientDet(get_efficientdet_config(arch), pretrained_backbone=False)
start = time.perf_counter()
if how == "ckptool":
    load_into(model, path)
else:
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=how == "mmap")
    model.load_state_dict(state)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"wall": seconds, "memory": peak}))
