"""What was fetched over the network, said at the end of a command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ckptool.errors import counted

if TYPE_CHECKING:
    from ckptool.remote.stores import Traffic


def say_traffic() -> None:
    """Say on stderr what was fetched since this was last said, if anything was."""
    stores = sys.modules.get("ckptool.remote.stores")
    traffic = stores.take_traffic() if stores is not None else None
    if traffic is not None and traffic.nbytes:
        click.echo(traffic_text(traffic), err=True)


def traffic_text(traffic: Traffic) -> str:
    """`fetched 1.2 MiB of 9.8 GiB in 7 requests (2 of them again)`."""
    from ckptool.render.words import size

    again = f" ({traffic.retries:,} of them again)" if traffic.retries else ""
    requests = counted(traffic.requests, "request")
    return f"fetched {size(traffic.nbytes)} of {size(traffic.whole)} in {requests}{again}"
