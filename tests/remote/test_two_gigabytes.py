"""Large files in S3: how much is fetched of them, and what memory it takes."""

from __future__ import annotations

import filecmp
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from servers import BUCKET, environment

import ckptool

pytestmark = pytest.mark.sweep
HOME = Path(ckptool.__file__).parent.parent
TENSORS, LENGTH = 2_000, 262_144  # 1 MiB each
# What is converted has 512 MiB: for each range moto reads a whole object, which for 2 GB comes to
# a quarter of an hour, and it joins parts for longer than s3fs waits for an answer.
CONVERTED = 512
MOST = 2 << 20  # bytes fetched to look at a file
MEMORY = 320 << 10  # KiB


@dataclass
class Bucket:
    """A bucket in another process."""

    process: subprocess.Popen[str]
    client: Any

    def sent(self) -> int:
        """The bytes of objects that were sent since this was last asked."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Bucket]]:
    """The files, on the disk and in the bucket."""
    import boto3

    folder = tmp_path_factory.mktemp("large")
    noise = torch.randn(LENGTH)
    state = {
        f"backbone.stages.{n // 20}.blocks.{n % 20}.conv.weight": noise + n for n in range(TENSORS)
    }
    torch.save(state, folder / "x.pth")
    save_file(state, folder / "x.safetensors")
    torch.save(dict(islice(state.items(), CONVERTED)), folder / "y.pth")
    del state
    script = str(Path(__file__).with_name("servers.py"))
    process = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    url = process.stdout.readline().strip()
    keys = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret"}
    with environment(AWS_ENDPOINT_URL=url, AWS_DEFAULT_REGION="us-east-1", **keys):
        client = boto3.client("s3")
        for name in ("x.pth", "x.safetensors", "y.pth"):
            client.upload_file(str(folder / name), BUCKET, name)
        yield folder, Bucket(process, client)
    process.communicate()


# What `resource` tells of a process that was forked begins with what its parent had.
CODE = """
import re, sys
from ckptool.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def run(*words: str) -> tuple[str, int]:
    """What a command says on stderr, and the most memory that it had, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words], capture_output=True, text=True, cwd=HOME
    )
    assert done.returncode == 0, done.stderr
    return done.stderr, int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_only_the_directory_is_fetched(
    command: str, name: str, large: tuple[Path, Bucket], count: Callable[[str, int], None]
) -> None:
    folder, bucket = large
    url = f"s3://{BUCKET}/{name}"
    more = ["--like", str(folder / "x.safetensors")] if command == "diff" else []
    bucket.sent()
    said, _ = run(command, url, *more)
    sent = bucket.sent()
    assert 0 < sent < MOST
    match = re.fullmatch(r"fetched .* of 2\.0 GiB in (\d+) requests\n", said)
    assert match
    assert int(match[1]) <= 10
    count(f"bytes that S3 sent for {command} of 2 GB {name[1:]}", sent)
    count(f"requests of {command} of 2 GB {name[1:]} in S3", int(match[1]))


def test_from_s3_to_s3_is_what_it_is_locally(
    large: tuple[Path, Bucket], tmp_path: Path, count: Callable[[str, int], None]
) -> None:
    folder, bucket = large
    run("convert", str(folder / "y.pth"), "-o", str(tmp_path / "out.safetensors"))
    bucket.sent()
    url = f"s3://{BUCKET}/out.safetensors"
    _, memory = run("convert", f"s3://{BUCKET}/y.pth", "-o", url)
    sent = bucket.sent()
    assert sent < 1.01 * (folder / "y.pth").stat().st_size
    bucket.client.download_file(BUCKET, "out.safetensors", str(tmp_path / "there.safetensors"))
    assert filecmp.cmp(tmp_path / "there.safetensors", tmp_path / "out.safetensors", shallow=False)
    assert memory < MEMORY
    count("MiB of memory to convert 512 MiB from S3 to S3", memory >> 10)
