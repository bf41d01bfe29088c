"""A batch on a Ray cluster of two nodes on this machine, one of which is killed in the middle.

    python two_nodes.py INPUTS OUT KILL_AFTER

Writes the summary as JSON, and how many tasks had to be given out again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from ray.cluster_utils import Cluster

from ckptool.fleet import on_ray
from ckptool.fleet.batch import Summary, run_job
from ckptool.fleet.tasks import Job
from ckptool.planning import Options
from ckptool.render.batch import batch_json


def main(inputs: str, out: str, kill_after: int) -> None:
    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    doomed = [cluster.add_node(**small)]
    cluster.wait_for_nodes()
    again = []

    def given_again(*words: Any, **more: Any) -> Any:
        again.append(words)
        return replace(*words, **more)

    on_ray.replace = given_again  # type: ignore[attr-defined]

    def kill(summary: Summary) -> None:
        if doomed and summary.settled >= kill_after:
            cluster.remove_node(doomed.pop(), allow_graceful=False)

    found = run_job(
        [inputs],
        out,
        Job(options=Options(dtype="fp16")),
        engine="ray",
        address=cluster.address,
        progress=kill,
    )
    value = {**batch_json(found), "again": len(again), "killed": not doomed}
    sys.stdout.write(json.dumps(value) + "\n")
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
