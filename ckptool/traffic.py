"""What was fetched over the network, said at the end of a command."""

from __future__ import annotations

import click

from ckptool.errors import counted
from ckptool.remote.stores import Traffic, take_traffic
from ckptool.render.words import size


def say_traffic() -> None:
    """Say on stderr what was fetched since this was last said, if anything was."""
    traffic = take_traffic()
    if traffic.nbytes:
        click.echo(traffic_text(traffic), err=True)


def traffic_text(traffic: Traffic) -> str:
    """`fetched 1.2 MiB of 9.8 GiB in 7 requests (2 of them again)`."""
    again = f" ({traffic.retries:,} of them again)" if traffic.retries else ""
    requests = counted(traffic.requests, "request")
    return f"fetched {size(traffic.nbytes)} of {size(traffic.whole)} in {requests}{again}"
