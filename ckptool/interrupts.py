"""Ctrl-C on the command line: a run stops once, in order, and without a traceback."""

from __future__ import annotations

import math
import signal
import sys
import time

STOPPED = 130  # the exit code: 128 and the number of SIGINT
_ONE_WISH = 1.0  # seconds: what comes sooner after a Ctrl-C means the same
_AGAIN = 0.01  # seconds


def watch() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, and leave alone the clearing up after it.

    Where Python can only report what is raised (in `__del__`, say), it is raised once more. A
    process that was started to ignore SIGINT goes on to do so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    last = -math.inf
    report = sys.unraisablehook

    def stop(number: int, _: object) -> None:
        nonlocal last
        now = time.monotonic()
        if number == signal.SIGALRM or now - last > _ONE_WISH:
            last = now
            raise KeyboardInterrupt

    def lost(what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            report(what)

    sys.unraisablehook = lost
    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGINT, stop)


def ignore() -> None:
    """Nothing is left to be stopped: the process ends.

    Python gives each signal its own action back when it ends, under which one would kill it still.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGALRM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
