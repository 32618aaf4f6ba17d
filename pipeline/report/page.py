"""The page of a run: one HTML file that opens offline, loads nothing, and runs only its own script.

Everything from a model, an endpoint or a row is treated as text: the template escapes it, and invisible or
direction-changing characters are made visible. The content security policy allows the one style and the one script by
their hashes, so that injected code could not run. Without the script everything is readable; with it, tables can be
sorted and rows searched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import orjson
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from pipeline.evaluation.assessment import Assessment
from pipeline.report import charts, evaluation, phrases
from pipeline.report.charts import charts_of
from pipeline.report.facts import RunFacts
from pipeline.storage.durable import FILES
from pipeline.text import clipped, figures, visible

MOST_BYTES = 2_000_000
"""Maximum bytes of a page, so that it can be mailed and attached to reviews."""

_TEMPLATE, _STYLE, _SCRIPT = "page.html.jinja", "page.css", "page.js"


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits on what is shown; the page says what was left out."""

    rows: int = 200
    characters: int = 4_000
    leaves: int = 60
    names: int = 200
    slices: int = 200
    fields: int = 100
    values: int = 30
    files: int = 50

    def halved(self) -> Caps:
        """Half as much of everything."""
        return Caps(*(getattr(self, name) // 2 for name in self.__slots__))


def page_of(
    facts: RunFacts,
    assessment: Assessment | None = None,
    prompts: Mapping[str, str] | None = None,
) -> str:
    """The page of the run, and of its evaluation if there is one.

    `prompts` maps row ids to prompts, for the rows that are not right. The page stays below `MOST_BYTES`, unless its
    fixed part alone is larger: the limits are halved until it fits.
    """
    caps = Caps()
    page = _rendered(facts, assessment, prompts or {}, caps)
    while len(page.encode()) >= MOST_BYTES and caps.characters:
        caps = caps.halved()
        page = _rendered(facts, assessment, prompts or {}, caps)
    return page


def write_page(page: str, path: Path) -> None:
    """Writes the page atomically. Raises OSError when the disk fails."""
    FILES.write_atomic(path, page.encode())


def _rendered(facts: RunFacts, assessment: Assessment | None, prompts: Mapping[str, str], caps: Caps) -> str:
    style, script = Markup(_resource(_STYLE)), Markup(_resource(_SCRIPT))  # noqa: S704 - files of this package
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            facts=facts,
            charts=charts_of(facts.timeline),
            status=_STATUS[facts.status],
            parameters=_parameters(facts),
            asked=_asked(facts),
            evaluation=None if assessment is None else _evaluation(assessment, prompts, caps),
            assessment=assessment,
            caps=caps,
            style=style,
            script=script,
            policy=_policy(style, script),
        )
    )


def _policy(style: str, script: str) -> str:
    """The content security policy: allows only this style and this script."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


_STATUS = {
    "complete": ("ok", "\N{CHECK MARK} complete"),
    "failed": ("bad", "\N{MULTIPLICATION X} too many failed rows"),
    "stopped": ("warn", "\N{WARNING SIGN}\N{VARIATION SELECTOR-15} stopped"),
    "running": ("info", "\N{BLACK CIRCLE} running"),
}


def _parameters(facts: RunFacts) -> list[tuple[str, str]]:
    """The parameters that determine the answers; prompt and schema as multi-line texts."""
    found = []
    for name, text in facts.fingerprint.items():
        if name == "prompt":
            found.append((name, _prompt(text)))
        elif text and name != "model":
            found.append((name, _indented(text)))
    return found


def _prompt(fingerprint: str) -> str:
    """The prompt templates, message by message, if the fingerprint holds texts; else the fingerprint."""
    try:
        messages = orjson.loads(fingerprint)
        return "\n\n".join(f"[{role}]\n{content}" for role, content in messages if isinstance(content, str))
    except (orjson.JSONDecodeError, TypeError, ValueError):
        return fingerprint


def _indented(text: str) -> str:
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
    except (orjson.JSONDecodeError, TypeError):
        return text


def _asked(facts: RunFacts) -> dict[str, int]:
    """The number of calls in the events, by kind; those of the last second before a crash are missing."""
    names = ("requests", "retries", "throttled", "hedged", "cache_hits")
    sums = {name: sum(point.counts.get(name) or 0 for point in facts.timeline.points) for name in names}
    return {name: round(count) for name, count in sums.items() if count}


def _evaluation(assessment: Assessment, prompts: Mapping[str, str], caps: Caps) -> dict[str, Any]:
    """The template values of the evaluation's sections."""
    whole, compared = assessment.tables.whole, assessment.comparison
    groups = evaluation.field_groups(whole)
    fields = [own for own, *_ in groups]
    names = [row.name for row in fields[: max(1, caps.fields // 8)]]
    wrong = phrases.wrong_rows(assessment)
    return {
        "verdict": phrases.verdict(assessment),
        "summary": phrases.render_gates(assessment),
        "gates": evaluation.gate_rows(assessment),
        "headlines": [(name, evaluation.share(whole.measures[name])) for name in _HEADLINES],
        "fields": fields,
        "field_groups": [group[: 1 + caps.fields] for group in groups[: caps.fields]],
        "slice_fields": names,
        "slices": list(evaluation.slice_rows(assessment.tables.slices[: caps.slices], names)),
        "confusions": [
            (each, evaluation.matrix(each))
            for each in assessment.confusions[: caps.values]
            if len(each.expected) <= caps.values and len(each.got) <= caps.values
        ],
        "changes": []
        if compared is None
        else [
            ("All rows", evaluation.change_rows([compared.overall])),
            ("Fields: rows in which it is right", evaluation.change_rows(compared.fields[: caps.fields])),
            ("Slices: rows that are right", evaluation.change_rows(compared.slices[: caps.slices])),
            ("F1 by field", evaluation.change_rows(compared.rates[: caps.fields])),
        ],
        "wrong": evaluation.wrong_row_views(
            assessment,
            prompts,
            most=caps.rows,
            leaves=caps.leaves,
            characters=max(40, min(600, caps.characters)),
        ),
        "wrong_count": len(wrong),
        "slice_values": evaluation.slice_values(assessment),
    }


_HEADLINES = {
    "row_correct": ("rows right", "every required field is right"),
    "schema_valid": ("valid answers", "rows with an answer that fits the schema"),
    "accuracy": ("leaf accuracy", "single values that are right, or rightly empty"),
    "f1": ("F1", "precision and recall in one, over all values"),
    "f1_macro": ("F1 macro", "mean of the fields' F1: each field counts as much"),
}
"""The tiles of an evaluation: the name and the explanation of each."""


def _resource(name: str) -> str:
    return resources.files("pipeline.report").joinpath(name).read_text("utf-8")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=DictLoader({_TEMPLATE: _resource(_TEMPLATE)}),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clip": clipped,
        "percent": figures.percent,
        "number": figures.short_number,
        "duration": figures.time_span,
        "size": figures.size,
        "grouped": figures.count,
        "usd": figures.dollars,
        "moment": figures.moment,
        "counted": figures.counted,
    }
    environment.globals |= {
        "chart": charts,
        "verdicts": evaluation.FIELD_COUNTS,
        "figures": evaluation.FIELD_FIGURES,
        "tiles": _HEADLINES,
    }
    return environment


def _shown(value: Any) -> Any:
    """Prepares a value for the template: everything in it is visible, and None prints as nothing."""
    if isinstance(value, Markup):
        return value
    return "" if value is None else visible(str(value))
