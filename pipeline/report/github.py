"""GitHub workflow commands: an annotation for every gate that did not pass, and none for rows."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.assessment import Assessment
from pipeline.text import visible

MOST = 10
"""The number of annotations of a kind that GitHub shows in a step."""


def annotation_lines(assessment: Assessment) -> Iterator[str]:
    """The lines to print, worst first."""
    for outcome, command in (("fail", "error"), ("warn", "warning"), ("info", "notice")):
        for decision in [one for one in assessment.decisions if one.outcome == outcome][:MOST]:
            title = _property(f"{assessment.scores.evaluation}: {decision.gate}")
            yield f"::{command} title={title}::{_data(decision.message)}"


def _data(text: str) -> str:
    """The text escaped for a command, so that model output in it cannot start another line."""
    return _lines(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _lines(text: str) -> str:
    return "\n".join(map(visible, text.splitlines()))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
