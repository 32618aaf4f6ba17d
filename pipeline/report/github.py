"""GitHub's workflow commands: an annotation for every gate that did not pass, and none for rows."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.assessment import Assessment
from pipeline.report.wording import visible

MOST = 10
"""What GitHub shows of a kind in a step."""


def annotation_lines(assessment: Assessment) -> Iterator[str]:
    """The lines to print, worst first."""
    for outcome, command in (("fail", "error"), ("warn", "warning"), ("info", "notice")):
        for decision in [one for one in assessment.decisions if one.outcome == outcome][:MOST]:
            title = _property(f"{assessment.scores.evaluation}: {decision.gate}")
            yield f"::{command} title={title}::{_data(decision.message)}"


def _data(text: str) -> str:
    """The text as a command takes it: the line ends with it, wherever a model's words came into it."""
    return _lines(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _lines(text: str) -> str:
    return "\n".join(map(visible, text.splitlines()))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
