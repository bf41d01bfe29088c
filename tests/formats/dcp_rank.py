"""One of two ranks that save a sharded state dict together; run by test_dcp.

python dcp_rank.py RANK STATE.pth FOLDER
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

RANKS = 2


def placed(key: str, tensor: torch.Tensor, mesh: dist.DeviceMesh) -> torch.Tensor | DTensor:
    """Rows to each rank, columns for some, the whole of a few; scalars are no DTensors at all."""
    if not tensor.dim():
        return tensor
    if key.endswith(".running_var"):
        return distribute_tensor(tensor, mesh, [Replicate()])
    by_column = tensor.dim() > 1 and "conv_pw" in key
    return distribute_tensor(tensor, mesh, [Shard(1 if by_column else 0)])


def main(rank: int, source: str, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}.init", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (RANKS,))
    state = torch.load(source, weights_only=True)
    shared = {key: placed(key, tensor, mesh) for key, tensor in state.items()}
    checkpoint.save({"model": shared, "epoch": 7}, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
