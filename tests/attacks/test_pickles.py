"""Attack pickles, in every container: nothing runs, what is readable lists what it names."""

from __future__ import annotations

import json
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


CASES = tuple((attack, _case(attack, kind)) for attack in SHAPES for kind in CONTAINERS) + tuple(
    (attack, _case(attack, kind)) for attack in GADGETS for kind in ("raw", "zip")
)


_RECORDING = """
import io, json, pickle, sys

class Inert(dict):
    def __init__(self, *arguments):
        pass

class Recorder(pickle.Unpickler):
    def find_class(self, module, name):
        found.append(f"{module}.{name}")
        return Inert
    def persistent_load(self, ident):
        return None

for line in sys.stdin:
    found = []
    try:
        Recorder(io.BytesIO(bytes.fromhex(line)), fix_imports=False).load()
    except Exception:
        pass
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def named() -> dict[bytes, set[str]]:
    """By stream, the globals that Python's own unpickler asks for, up to where it fails."""
    streams = [attack.stream for attack in (*SHAPES, *GADGETS) if attack.harmless_to_unpickle]
    lines = "".join(stream.hex() + "\n" for stream in streams)
    asked = subprocess.run(
        [sys.executable, "-c", _RECORDING], input=lines, capture_output=True, text=True, check=True
    )
    found = [set(json.loads(line)) for line in asked.stdout.splitlines()]
    assert sum(map(bool, found)) > len(GADGETS)
    return dict(zip(streams, found, strict=True))


@pytest.mark.parametrize(("attack", "case"), CASES, ids=[case.name for _, case in CASES])
def test_attack_is_read_without_running_or_refused(
    attack: Attack,
    case: Case,
    worker: Worker,
    named: dict[bytes, set[str]],
    count: Callable[[str, int], None],
) -> None:
    found = worker.examine(case)
    judge(case, found)
    count("attack pickles in their containers", 1)
    if case.code is None and attack.code is None and not case.name.endswith("-nested"):
        assert named.get(attack.stream, set()) <= set(found["globals"])
        count("readable attacks that list every global they name", 1)


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
