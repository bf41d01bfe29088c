"""One of two ranks that save a sharded state dict together; run by test_dcp.

python dcp_rank.py RANK STATE.pth FOLDER [fsdp]

With `fsdp` the tensors are in a real tf_efficientdet_d0 that FSDP has sharded.
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


def in_fsdp(state: dict[str, torch.Tensor], mesh: dist.DeviceMesh) -> dict[str, object]:
    """What FSDP gives for the state dict of a model with these values."""
    from effdet import EfficientDet, get_efficientdet_config
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    config = get_efficientdet_config("tf_efficientdet_d0")
    model = EfficientDet(config, pretrained_backbone=False)
    model.load_state_dict(state)
    for part in (model.backbone, model.fpn, model):
        fully_shard(part, mesh=mesh)
    return get_model_state_dict(model)


def main(rank: int, source: str, folder: str, how: str = "") -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}.init", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (RANKS,))
    state = torch.load(source, weights_only=True)
    shared: dict[str, object] = (
        in_fsdp(state, mesh)
        if how == "fsdp"
        else {key: placed(key, tensor, mesh) for key, tensor in state.items()}
    )
    checkpoint.save({"model": shared, "epoch": 7}, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
