"""Files of the hub, `hf://owner/repository/file`, asked by its own client of a small stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from servers import Handler, Web

import ckptool

HOME = Path(ckptool.__file__).parent.parent
STATE = {f"layer.{n}.weight": torch.randn(64, 400) for n in range(40)}


class _Hub(Handler):
    """Just enough of the hub's API, as huggingface_hub 2.4 asks for it."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/owner/repo"):
            if "/tree/" in path:
                self._json([self._entry(name) for name in os.listdir(self.state.folder)])
            else:
                self._json({"id": "owner/repo", "sha": "0" * 40, "siblings": [], "tags": []})
            return
        self.path = "/" + path.rpartition("/")[2]
        super().do_GET()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        text = self.rfile.read(length).decode()
        names = [name for name in os.listdir(self.state.folder) if name in text]
        self._json([self._entry(name) for name in names])

    def _entry(self, name: str) -> dict[str, Any]:
        size = (self.state.folder / name).stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": f"{size:040x}"}

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self._start(200, len(data), Content_Type="application/json")
        self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Web]:
    state = Web(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"state": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("place", ["hf://owner/repo/model.safetensors", "hf://owner/repo"])
def test_only_the_header_is_fetched(place: str, hub: Web) -> None:
    """Of a file, and of the one in a repository."""
    save_file(STATE, hub.folder / "model.safetensors")
    (hub.folder / "README.md").write_text("of the author")
    done = subprocess.run(
        [sys.executable, "-m", "ckptool", "inspect", place],
        capture_output=True,
        text=True,
        cwd=HOME,
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_a-token", "HF_HUB_OFFLINE": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hf://owner/repo/model.safetensors: safetensors, 3.9 MiB")
    assert done.stderr.startswith("fetched ")
    assert "hf_a-token" not in done.stdout + done.stderr
    assert hub.sent < 1 << 18
