"""Attack pickles, in every container: nothing runs, what is readable lists what it names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from .case import Case
from .harness import Worker, judge
from .pickles import Attack, gadgets, shapes
from .wrapping import CONTAINERS

SHAPES = tuple(shapes())
GADGETS = tuple(gadgets())


def _case(attack: Attack, container: str) -> Case:
    file, wrap = CONTAINERS[container]
    code = attack.codes.get(container, attack.code)
    names = attack.names
    if container == "nested":
        # A nested stream that breaks the rules stays an opaque value of a file that is readable.
        # So does one that lies a level too deep.
        readable = attack.codes.get("legacy", attack.code) in (None, "tree.depth")
        readable = readable and attack.name != "P21-twice"
        names = ("torch.storage._load_from_bytes", *(names if readable else ()))
        code = None
    return Case(f"{attack.name}-{container}", wrap(attack.stream), file, code, names)


CASES = tuple(_case(attack, container) for attack in SHAPES for container in CONTAINERS) + tuple(
    _case(attack, container) for attack in GADGETS for container in ("raw", "zip")
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attack_is_read_without_running_or_refused(
    case: Case, worker: Worker, count: Callable[[str, int], None]
) -> None:
    judge(case, worker.examine(case))
    count("attack pickles in their containers", 1)


_PLAIN = """
import pickle, sys
sys.attacked = False
for line in sys.stdin:
    sys.attacked = False
    try:
        pickle.loads(bytes.fromhex(line))
    except Exception:
        pass
    print(int(sys.attacked), flush=True)
"""


def test_the_shapes_are_real_attacks_on_a_plain_unpickler(
    count: Callable[[str, int], None],
) -> None:
    """Each shape that is marked so executes when it is unpickled, and no other does."""
    wanted = {attack.name: attack.runs for attack in SHAPES if attack.harmless_to_unpickle}
    streams = [attack.stream for attack in SHAPES if attack.harmless_to_unpickle]
    lines = "".join(stream.hex() + "\n" for stream in streams)
    plain = subprocess.run(
        [sys.executable, "-c", _PLAIN], input=lines, capture_output=True, text=True, check=True
    )
    ran = dict(zip(wanted, map(int, plain.stdout.split()), strict=True))
    assert {name for name in wanted if wanted[name]} == {name for name in ran if ran[name]}
    count("attack shapes that pickle.loads runs", sum(ran.values()))
