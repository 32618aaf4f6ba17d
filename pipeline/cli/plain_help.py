"""`--help` as plain text, where standard output is not a terminal: rich's panels take as long as all the rest.

The same sections under the same headings as the panels on a terminal, and nothing is cut short.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from typer.core import TyperCommand, TyperGroup


class _Formatter(Protocol):
    """What is used of typer's help formatter."""

    current_indent: int

    def section(self, name: str) -> Any:
        """A block below a heading."""

    def write_dl(self, rows: Any) -> None:
        """Writes a list of terms with their descriptions."""

    def write_paragraph(self) -> None:
        """Writes an empty line, if something was written before."""

    def write_text(self, text: str) -> None:
        """Writes a paragraph, wrapped."""

    def write(self, string: str) -> None:
        """Writes text as it is."""


class PlainCommand(TyperCommand):
    """A command whose plain help has a section for each panel of options."""

    def format_options(self, ctx: Any, formatter: _Formatter) -> None:
        """Writes arguments and options, each under the heading of its panel."""
        _write_options(self.get_params(ctx), ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: _Formatter) -> None:  # noqa: ARG002 - typer passes it
        """Writes the examples, unbroken so that they can be copied."""
        _write_examples(self.epilog, formatter)


class PlainGroup(TyperGroup):
    """A group of commands whose plain help has each command's first sentence, whole."""

    def format_options(self, ctx: Any, formatter: _Formatter) -> None:
        """Writes the options, then the commands."""
        _write_options(self.get_params(ctx), ctx, formatter)
        commands = [self.get_command(ctx, name) for name in self.list_commands(ctx)]
        rows = [(one.name, _first_paragraph(one.help)) for one in commands if one is not None and not one.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: _Formatter) -> None:  # noqa: ARG002 - typer passes it
        """Writes the text below, or the examples."""
        _write_examples(self.epilog, formatter)


def _write_options(parameters: Iterable[Any], ctx: Any, formatter: _Formatter) -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in parameters:
        shown = parameter.get_help_record(ctx)
        if shown is not None:
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(shown)
    for heading, rows in sections.items():
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


def _write_examples(text: str | None, formatter: _Formatter) -> None:
    heading, *examples = (text or "").split("\n\n")
    if not heading:
        return
    formatter.write_paragraph()
    formatter.write_text(heading)
    for example in examples:
        formatter.write(f"{' ' * (formatter.current_indent + 2)}{example}\n")


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").partition("\n\n")[0].split())
