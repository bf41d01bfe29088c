"""The command `ckptool`, which `python -m ckptool` is too."""

import sys

from ckptool.interrupts import STOPPED, ignore, watch


def run() -> None:
    """Run the command line, and end the process with its exit code."""
    code = STOPPED
    try:
        try:
            watch()
            from ckptool.cli import main

            code = main()
        finally:
            ignore()
    except KeyboardInterrupt:  # while the command line was imported, or had come to its end
        sys.stderr.write("stopped\n")
    sys.exit(code)


if __name__ == "__main__":
    run()
