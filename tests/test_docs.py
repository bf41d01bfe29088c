"""Every command in README and docs is run, and what it shows is what stands there.

In a block ```` ```console ```` a line `$ …` is a command and the lines below are all that it shows;
in ```` ```pycon ```` a line `>>> …` is Python. A `…` stands for the rest of a line, alone on a line
for any lines. A block ```` ```python name.py ```` (or another language and name) is a file, and
```` ```diff ```` changes a copy of the package. Each section works in a folder of its own, with the
files of `docs_made`.

`python tests/test_docs.py` writes what is shown anew; look at the difference before committing.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch
from checkpoints_made import effdet
from docs_made import FILES

from ckptool import dialects
from ckptool.cli import main

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
_PROMPTS = {"console": "$ ", "pycon": ">>> "}
_LONGEST_EXAMPLE = 30


@dataclass(frozen=True)
class Section:
    """A part of a document, from one heading of the second level to the next."""

    document: str
    title: str
    text: str


def sections() -> list[Section]:
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for text in re.split(r"^(?=## )", path.read_text(), flags=re.M):
            title = text.splitlines()[0].lstrip("# ") if text.strip() else ""
            if any(_is_run(block) for block in _FENCE.finditer(text)):
                found.append(Section(str(path.relative_to(ROOT)), title, text))
    return found


def _is_run(block: re.Match[str]) -> bool:
    return block[1] in _PROMPTS or block[1] == "diff" or bool(block[2])


class Session:
    """What is typed into a terminal in the current folder, and what is shown."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"torch": torch, "create_model": effdet_model}
        self.own_package = False

    def shown(self, language: str, typed: str) -> str:
        """What a command shows, or a Python expression."""
        for name in FILES:
            if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", typed):
                self._make(name)
        return self._python(typed) if language == "pycon" else self._command(typed)

    def _make(self, name: str) -> None:
        if not Path(name).exists():
            FILES[name](Path(name))

    def _command(self, typed: str) -> str:
        program, *words = shlex.split(typed)
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if program == "ckptool" and not self.own_package:
                main(words)
            elif program == "ckptool":
                output.write(_run([sys.executable, "-m", "ckptool", *words]))
            elif program == "python":
                runpy.run_path(words[0], run_name="__main__")
            elif (program, words) == ("pip", ["install", "."]):
                _install()
            elif program == "ls":
                names = sorted(path.name for path in Path().glob(words[0]))
                output.write("\n".join(names))
            else:
                raise ValueError(f"the documents have no program {program!r}")
        return output.getvalue()

    def _python(self, typed: str) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # to load into the meta device does nothing
            try:
                exec(compile(typed, "<document>", "single"), self.names)
            except Exception as error:
                notes = getattr(error, "__notes__", ())
                output.write("\n".join((f"{type(error).__name__}: {error}", *notes)))
        return output.getvalue()

    def write(self, name: str, text: str) -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("ckptool/"):
            self._copy_package()
        Path(name).write_text(text)

    def patch(self, text: str) -> None:
        self._copy_package()
        subprocess.run(["git", "apply", "-"], input=text, text=True, check=True)

    def _copy_package(self) -> None:
        """From now on the package is the copy in this folder."""
        if not self.own_package:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "ckptool", "ckptool", ignore=ignored, dirs_exist_ok=True)
        self.own_package = True


def effdet_model(name: str, num_classes: int = 90, **config: Any) -> Any:
    """effdet's create_model, for the meta device."""
    return effdet(name, num_classes, **config)


def _run(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, text=True, env=environment, check=False, **both).stdout


def _install() -> None:
    """Install the package in the current folder for this process; it needs a setup.cfg only."""
    Path("setup.py").write_text("from setuptools import setup\nsetup()\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", "site", "."]
    subprocess.run(command, check=True, capture_output=True)
    sys.path.insert(0, str(Path("site").resolve()))
    dialects.added.cache_clear()


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """Work in a folder, and leave no trace of what was installed there."""
    before, modules, at = list(sys.path), set(sys.modules), os.getcwd()
    os.chdir(path)
    try:
        with mock.patch.dict(os.environ, {"NO_COLOR": "1", "COLUMNS": "100"}):
            yield
    finally:
        os.chdir(at)
        sys.path[:] = before
        dialects.added.cache_clear()
        for name in set(sys.modules) - modules:
            home = getattr(sys.modules[name], "__file__", None) or ""
            if home.startswith(str(path)):
                del sys.modules[name]


def renewed(text: str) -> str:
    """A section with what its commands show today, run in the current folder."""
    session = Session()

    def block(match: re.Match[str]) -> str:
        language, name, body = match.groups()
        if language == "diff":
            session.patch(body)
        elif name:
            session.write(name, body)
        elif language in _PROMPTS:
            return f"```{language}\n{_renewed_block(session, language, body)}```"
        return match[0]

    return _FENCE.sub(block, text)


def _renewed_block(session: Session, language: str, body: str) -> str:
    prompt = _PROMPTS[language]
    first, *parts = re.split(rf"^{re.escape(prompt)}", body, flags=re.M)
    assert not first, f"output without a command: {first!r}"
    result = ""
    for part in parts:
        typed, _, stated = part.partition("\n")
        shown = session.shown(language, typed).rstrip()
        if not _agrees(stated.rstrip(), shown):
            new = _cut(shown) if re.match(r"\w+Error: ", shown) else shown
            stated = "\n".join(_open(line, stated) for line in new.splitlines())
        result += f"{prompt}{typed}\n" + (f"{stated.rstrip()}\n\n" if stated.strip() else "")
    return result.rstrip() + "\n"


def _cut(error: str) -> str:
    """The start of an error, which can have hundreds of keys in it."""
    lines = [line if len(line) <= 100 else f"{line[:99]}…" for line in error.splitlines()]
    return "\n".join(lines[:3] + ["…"] * (len(lines) > 3))


def _open(line: str, stated: str) -> str:
    """A new line, or the old one with a `…` in it that stands for it, too."""
    old = [each for each in stated.splitlines() if "…" in each and each.strip() != "…"]
    return next((each for each in old if _agrees(each, line)), line)


def _agrees(stated: str, shown: str) -> bool:
    """Whether what a document says is what is shown, `…` standing for anything."""
    lines = [
        r"(?s:.*)" if line.strip() == "…" else re.escape(line).replace("…", ".*")
        for line in stated.splitlines()
    ]
    return re.fullmatch("\n".join(lines), _plain(shown)) is not None


def _plain(shown: str) -> str:
    return "\n".join(line.rstrip() for line in shown.splitlines())


@pytest.mark.parametrize("section", sections(), ids=lambda each: f"{each.document} {each.title}")
def test_a_section(section: Section, tmp_path: Path) -> None:
    with folder(tmp_path):
        assert renewed(section.text) == section.text


def test_the_readme_shows_what_the_demo_prints() -> None:
    """`make demo` runs this script with an environment of its own."""
    script = ROOT / "fixtures" / "demo.sh"
    printed = subprocess.run(
        ["sh", str(script), sys.executable], capture_output=True, text=True, check=True
    ).stdout
    assert f"```console\n{printed.rstrip()}\n```" in (ROOT / "README.md").read_text()


def test_there_is_a_recipe_for_each_everyday_failure() -> None:
    """Each is an error or a question, a command and its output."""
    recipes = [each for each in sections() if each.document == "docs/cookbook.md"]
    assert len(recipes) >= 20
    assert all("$ ckptool " in each.text for each in recipes)


def test_what_extends_ckptool_is_short() -> None:
    """A format, an architecture, a dialect, an edit."""
    text = (ROOT / "docs" / "extending.md").read_text()
    examples = [match[3] for match in _FENCE.finditer(text) if match[1] == "python"]
    assert len(examples) >= 4
    assert max(example.count("\n") for example in examples) <= _LONGEST_EXAMPLE


def test_no_document_shows_a_defect() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert "a defect in ckptool" not in path.read_text()


def test_every_link_leads_somewhere() -> None:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def rewrite(names: list[str]) -> None:
    """The documents with what their commands show today; all of them if none is named."""
    for document in dict.fromkeys(each.document for each in sections()):
        if names and not any(name in document for name in names):
            continue
        path = ROOT / document
        text = path.read_text()
        for section in sections():
            if section.document == document:
                with tempfile.TemporaryDirectory() as place, folder(Path(place)):
                    text = text.replace(section.text, renewed(section.text))
        path.write_text(text)


if __name__ == "__main__":
    rewrite(sys.argv[1:])
