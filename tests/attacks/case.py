"""What a hostile case is: files in a folder, and what must become of the one that is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Case:
    """A hostile file.

    `name` starts with the id of the threat. `code` is that of the error or its beginning, None
    where the file is readable; `names` are the globals that must then be listed, each as dangerous.
    `tensors_code` is the error of a file that opens, but one of whose tensors cannot be read.
    `beside` are other files in the folder, `links` symbolic links in it and what they point to.
    """

    name: str
    data: bytes
    file: str = "case.pth"
    code: str | None = None
    names: tuple[str, ...] = ()
    tensors_code: str | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def write(self, folder: str) -> str:
        """The path of the case, written into an empty folder."""
        for name, data in {**self.beside, self.file: self.data}.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)
        for name, target in self.links.items():
            os.symlink(target, os.path.join(folder, name))
        return os.path.join(folder, self.file)
