"""What `ckptool diff FILE --arch ARCH` replaces: build the model, load the file, compare.

Usage: python diff_with_torch.py FILE ARCH [NUM_CLASSES]

Written as somebody would who knows torch well: nothing is downloaded, only tensors are unpickled,
the values are mapped and not copied. Exit code 0 if a strict load would succeed, 1 if not.
"""

from __future__ import annotations

import sys

import torch
from effdet import EfficientDet, get_efficientdet_config


def wanted_shapes(arch: str, num_classes: int | None) -> dict[str, torch.Size]:
    """The keys of a new model's state dict and their shapes."""
    config = get_efficientdet_config(arch)
    if num_classes is not None:
        config.num_classes = num_classes
    model = EfficientDet(config, pretrained_backbone=False)
    return {key: value.shape for key, value in model.state_dict().items()}


def found_shapes(path: str) -> dict[str, torch.Size]:
    """The keys of a checkpoint's state dict and their shapes."""
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {key: value.shape for key, value in loaded.get("state_dict", loaded).items()}


def main(path: str, arch: str, num_classes: int | None = None) -> int:
    """Print every difference of keys and shapes."""
    wanted = wanted_shapes(arch, num_classes)
    found = found_shapes(path)
    lines = [f"missing     {key}" for key in wanted.keys() - found.keys()]
    lines += [f"unexpected  {key}" for key in found.keys() - wanted.keys()]
    for key in wanted.keys() & found.keys():
        if wanted[key] != found[key]:
            lines.append(f"shape       {key}: {tuple(found[key])} instead of {tuple(wanted[key])}")
    print(*sorted(lines), f"{len(lines)} differences", sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    file, name, *count = sys.argv[1:]
    sys.exit(main(file, name, int(count[0]) if count else None))
