"""Writing a torch.distributed.checkpoint folder, by torch itself; all tensors are in memory then.

Source: torch 2.15, `torch.distributed.checkpoint.save`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping

from ckptool.errors import OutputError, UnsupportedError
from ckptool.formats.atomic import replace_text
from ckptool.formats.dcp import PROVENANCE
from ckptool.tensors import LazyTensor


def write(folder: str, tensors: Mapping[str, LazyTensor]) -> None:
    """Save the tensors into a folder, keys as they are; needs torch, not a process group.

    Raises: UnsupportedError without torch, OSError or OutputError if it cannot be written.
    """
    try:
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.api import CheckpointException
    except ImportError:
        raise UnsupportedError(
            "a torch.distributed.checkpoint folder is written by torch, which is not installed",
            hint="pip install 'ckptool[live]'",
            code="unsupported.torch",
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is alone, which is meant
        state = {key: tensor.torch() for key, tensor in tensors.items()}
        try:
            checkpoint.save(state, checkpoint_id=folder, no_dist=True)
        except CheckpointException as error:
            # It is no Exception, and hides what was raised, Ctrl-C as well.
            raise _told(next(iter(error.failures.values()))[0]) from None


def write_provenance(folder: str, text: str) -> None:
    """Put the text into a file of its own, which torch passes over."""
    replace_text(os.path.join(folder, PROVENANCE), text)


def _told(failure: BaseException) -> BaseException:
    """What stopped torch: its writer fails once more while it is closed after that."""
    found: BaseException | None = failure
    while found is not None and not isinstance(found, (OSError, KeyboardInterrupt)):
        found = found.__context__
    return found or OutputError(f"torch does not write it: {failure}", code="output.torch")
