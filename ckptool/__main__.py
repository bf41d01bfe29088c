"""The command `ckptool`, which `python -m ckptool` is too."""

import gc
import os
import sys

from ckptool.interrupts import STOPPED, ignore, watch


def run() -> None:
    """Run the command line, and end the process with its exit code."""
    # Looking for cycles took a quarter of the time; a command makes hardly any.
    gc.set_threshold(10_000_000, 50, 1000)
    code = STOPPED
    try:
        try:
            watch()
            _give_streams()
            from ckptool.cli import main

            code = main()
        finally:
            ignore()
    except KeyboardInterrupt:  # while the command line was imported, or had come to its end
        sys.stderr.write("stopped\n")
    gc.freeze()  # at the end Python looks for cycles in all that is there, as if it mattered
    sys.exit(code)


def _give_streams() -> None:
    """A place to write to for a process that was started without one (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


if __name__ == "__main__":
    run()
