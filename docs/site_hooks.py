"""Hooks of the documentation site: pages from outside of docs/, and the reference that is made from the code.

MkDocs calls `on_files` once, and `on_page_markdown` for each page. Nothing is written into docs/.
"""

from __future__ import annotations

import importlib
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.site")

ROOT = Path(__file__).resolve().parent.parent

OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "data/README.md": "sample-data.md",
}
"""Pages of the repository that are not in docs/, and what they are called on the site."""

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_BAR = "\\|"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside of docs/ and the generated reference."""
    texts = {name: (ROOT / path).read_text("utf-8") for path, name in OUTSIDE.items()}
    texts |= {"reference/commands.md": commands_page(), "reference/python.md": python_page()}
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """The page with links that lead to where its targets are on the site."""
    uri = page.file.src_uri
    source = next((path for path, name in OUTSIDE.items() if name == uri), f"docs/{uri}")
    pieces = _FENCE.split(markdown)
    return "".join(_titled(piece) if piece.startswith("```") else _relinked(piece, source, uri) for piece in pieces)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Warns, which ends a strict build, if a fence was taken for text."""
    if "<p>```" in html:
        log.warning("%s: a fenced block was not understood", page.file.src_uri)
    return html


def _titled(block: str) -> str:
    """A block with the name of a file (```python mood.py) as the site's extension wants it."""
    return re.sub(r"\A```(\w+) +(\S+)$", r'```\1 title="\2"', block, count=1, flags=re.MULTILINE)


def _relinked(text: str, source: str, uri: str) -> str:
    def target(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        on_site = OUTSIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        return found[1] if on_site is None else posixpath.relpath(on_site, posixpath.dirname(uri) or ".")

    return _LINK.sub(target, text)


def commands_page() -> str:
    """Every command with its usage and options, as its `--help` says them."""
    import typer

    from pipeline.cli import app

    group: Any = typer.main.get_command(app)
    head = (
        "# Commands\n\nMade from the commands themselves. [Running](../running.md) explains how they work together.\n\n"
    )
    return head + "\n".join(_command_section(command, name, "pipeline") for name, command in group.commands.items())


def _command_section(command: Any, name: str, parent: str, level: int = 2) -> str:
    path = f"{parent} {name}"
    usage = " ".join(_argument(param) for param in command.params if param.param_type_name == "argument")
    lines = [f"{'#' * level} {path}", "", _plain(command.help), "", "```text", f"{path} [OPTIONS] {usage}".rstrip()]
    lines += ["```", ""]
    options = [row for param in command.params for row in _option_row(param)]
    if options:
        lines += ["| option | default | meaning |", "|---|---|---|", *options, ""]
    inner = getattr(command, "commands", {})
    return "\n".join([*lines, *(_command_section(each, key, path, level + 1) for key, each in inner.items())])


def _argument(param: Any) -> str:
    word = f"{param.metavar or param.name.upper()}{'...' if param.nargs != 1 else ''}"
    return word if param.required or word.startswith("[") else f"[{word}]"


def _option_row(param: Any) -> Iterator[str]:
    if param.param_type_name == "option" and not param.hidden:
        flags = ", ".join(f"`{flag}`" for flag in (*param.opts, *param.secondary_opts))
        shown = param.default
        default = "" if shown is None or callable(shown) or shown in (False, (), []) else f"`{shown}`"
        yield f"| {flags} | {default} | {_plain(param.help).replace('|', _BAR)} |"


def _plain(text: str | None) -> str:
    """Help without the paragraphs' line ends and marks of the terminal."""
    return " ".join(re.sub(r"\[/?[a-z ]*\]", "", text or "").replace("\b", "").split())


def python_page() -> str:
    """What `pipeline` and `pipeline.evaluation` offer, as their docstrings say it."""
    pages = ["# Python", "", "Made from the docstrings of the code.", ""]
    for package in ("pipeline", "pipeline.evaluation"):
        pages += [f"## {package}", ""]
        pages += [line for name in importlib.import_module(package).__all__ for line in _directive(package, name)]
    return "\n".join(pages)


def _directive(package: str, name: str) -> list[str]:
    found = getattr(importlib.import_module(package), name)
    home = getattr(found, "__module__", package)
    path = f"{home}.{getattr(found, '__qualname__', name)}"
    return [f"::: {path}", "    options:", "      heading_level: 3", ""]
