"""A Page as one HTML text: everything inline, every name escaped, no script but its own."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from importlib.util import find_spec
from typing import Any

from ckptool.errors import CkptError, OutputError, quoted
from ckptool.files import ByteFile
from ckptool.formats.atomic import replace_text
from ckptool.formats.target import refuse_target
from ckptool.report.page import TEXT, Cell, Page
from ckptool.version import VERSION

SUFFIXES = (".html", ".htm")

# In their order they are the body of one function; the last one starts what they declare.
_SCRIPTS = ("page.js", "map.js", "charts.js", "table.js")
# What a page of ours starts with: nothing else is replaced by a new one.
_START = b"<!doctype html><!-- ckptool -->"


def check_target(path: str) -> None:
    """Refuse, before any work is done, a file that a page cannot be written to.

    Raises: OutputError for another suffix, no folder, or a file that is no page of ckptool;
    CkptError where Jinja2 is not installed.
    """
    if not path.lower().endswith(SUFFIXES):
        raise OutputError(
            f"{quoted(path)}: found {quoted(os.path.splitext(path)[1])}, wanted the suffix .html",
            hint=f"--html {os.path.splitext(path)[0]}.html",
            code="output.suffix",
        )
    if refuse_target(path, force=True) is not None:
        file = ByteFile(path)
        if file.read(0, min(file.size, len(_START))) != _START:
            raise OutputError(
                f"{quoted(path)}: there already, and not a page that ckptool wrote",
                hint="--html ANOTHER.html",
                code="output.exists",
            )
    if find_spec("jinja2") is None:
        raise CkptError(
            "an HTML page needs Jinja2, which is not installed",
            hint="pip install 'ckptool[html]'",
            code="missing.jinja2",
        )


def write_page(path: str, page: Page) -> None:
    """Write a page, in the place of an earlier one.

    Raises: CkptError, as `check_target`, or if the file cannot be written.
    """
    check_target(path)
    replace_text(path, render(page))


def render(page: Page) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ckptool", "report/template"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "separators": (",", ":"),
        "allow_nan": False,
        "ensure_ascii": False,
    }
    environment.filters["ticks"] = _with_code
    parts = "\n".join(environment.get_template(name).render() for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{parts}}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        page=page, data=data(page), script=script, digest=digest, version=VERSION
    )


def _with_code(text: str) -> Any:
    """The text with what stands in backticks as code; all of it is escaped."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:
        return escape(text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if at % 2 else part for at, part in enumerate(parts))


def data(page: Page) -> dict[str, Any]:
    """What the page's script works on, each text once: rows hold the numbers of their texts."""
    texts: dict[str, int] = {}
    textual = [column.kind == TEXT for column in page.columns]
    rows = [
        [
            row.key,
            row.status,
            row.nbytes,
            *(
                texts.setdefault(str(cell), len(texts)) if text else _plain(cell)
                for cell, text in zip(row.cells, textual, strict=True)
            ),
        ]
        for row in page.rows
    ]
    places = {row.key: number for number, row in enumerate(page.rows)}
    return {
        "statuses": [[status.style, status.sign, status.label] for status in page.statuses],
        "columns": [[column.name, column.kind] for column in page.columns],
        "texts": list(texts),
        "rows": rows,
        "points": [[places[k] for k in point.keys if k in places] for point in page.points],
        "chart": page.chart,
    }


def _plain(cell: Cell) -> Any:
    """A cell as JSON can hold it, numbers to six figures: infinite ones as text."""
    if isinstance(cell, float):
        if not math.isfinite(cell):
            return "nan" if math.isnan(cell) else "inf" if cell > 0 else "-inf"
        return float(f"{cell:.6g}")
    return cell
