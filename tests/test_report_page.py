"""The page of a run: whole, harmless, small, and with the numbers of the run."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.reducers import Flaky
from pipeline.report.evaluation import parted
from pipeline.report.facts import InputFileFacts, RunFacts
from pipeline.report.page import MOST_BYTES, page_of
from pipeline.report.scan import Example, FailureExamples, RunFindings
from pipeline.report.timeline import Point, Timeline
from pipeline.text import visible
from tests.assessments import BROKEN, GOLD, assessed
from tests.commands import JOB, Shell

HOSTILE = (
    '</script><img src=x onerror="alert(1)">{{ 7 * 7 }}<!--</style></pre></details>'
    "\x1b[31mred\x1b[0m \u202egnp.exe \u200b\U000e0041\ud800"
)
VOID = {"meta", "br", "input", "link", "img", "hr"}
SVG_ALONE = {"line", "rect", "path", "circle"}


def facts_of(**changes: Any) -> RunFacts:
    """A run of 1,234 rows, with something in every part of the page."""
    points = tuple(Point(float(n), 1.0, {"ok": 20.0, "failed": n % 3, "requests": 21.0}, limit=30.0) for n in range(20))
    example = Example(3, "key-3", "400 said the server", "the reply", '{"text": "the input"}')
    plain: dict[str, Any] = {
        "output": "out/a_job",
        "job": "a_job",
        "model": "google/gemini-test",
        "status": "complete",
        "simulated": True,
        "run_id": "0123",
        "created": "2026-11-22T13:00:00+00:00",
        "version": "1.2.3",
        "rows": 1234,
        "ok": 1200,
        "failed": 34,
        "tokens": {"input": 5678, "output": 910, "reasoning": 11, "cached": 12},
        "cost_usd": 12.34,
        "fingerprint": {"model": "m", "prompt": '[["user", "Say {{ text }}"]]', "schema": "", "columns": "{}"},
        "inputs": (InputFileFacts("rows.jsonl", 1234, 4096, "ab" * 32),),
        "seconds": 20.0,
        "timeline": Timeline(points, 20.0, (7.0,)),
        "findings": RunFindings(
            (FailureExamples("Refused", 400, 34, (example,)),), {0.5: 0.25, 0.95: 1.5, 0.99: 2.5}, {"stop": 1200}
        ),
        "notes": ("something is missing",),
    }
    return RunFacts(**{**plain, **changes})


class Reader(HTMLParser):
    """Reads a page as strictly as the standard library can: what is opened is closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute comes twice in {self.get_starttag_text()}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_ALONE
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & {*self.open[-1:]}:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def an_assessment(rows: int = 30) -> Any:
    answers = [BROKEN if place % 3 == 0 else None if place % 7 == 0 else GOLD for place in range(rows)]
    return assessed(answers, [GOLD] * rows)


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(facts_of(), an_assessment(), {"row-000": "the prompt of it"})


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


# Whole and harmless.


def test_everything_that_is_opened_is_closed_and_ids_are_unique(read: Reader) -> None:
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    anchors = {str(attributes["href"])[1:] for attributes in read.all("a")}
    assert anchors <= set(ids)
    assert len(anchors) > 5


def test_the_policy_allows_the_one_style_and_the_one_script_by_their_hashes_and_nothing_else(page: str) -> None:
    policies = [
        one["content"] for one in Reader(page).all("meta") if one.get("http-equiv") == "Content-Security-Policy"
    ]
    parts = dict(part.strip().split(" ", 1) for part in str(policies[0]).split(";"))
    assert len(policies) == 1
    assert parts.keys() == {
        "default-src", "style-src", "script-src", "base-uri", "form-action", "require-trusted-types-for",
    }  # fmt: skip
    assert {parts["default-src"], parts["base-uri"], parts["form-action"]} == {"'none'"}
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert parts[f"{tag}-src"] == f"'sha256-{digest}'"


def test_nothing_is_loaded_and_no_attribute_holds_style_or_script(read: Reader) -> None:
    for tag, attributes in read.tags:
        assert not {name for name in attributes if name.startswith("on") or name in {"style", "src", "srcset"}}, tag
        assert str(attributes.get("href", "#")).startswith("#")
    assert not {"img", "iframe", "object", "embed", "link", "base"} & {tag for tag, _ in read.tags}
    assert len(read.all("script")) == len(read.all("style")) == 1


def hostile_page() -> str:
    """A page into which the hostile text came everywhere it can come from."""
    example = Example(3, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    facts = facts_of(
        output=HOSTILE,
        job=HOSTILE,
        model=HOSTILE,
        notes=(HOSTILE,),
        fingerprint={"model": HOSTILE, "prompt": HOSTILE, "schema": HOSTILE},
        inputs=(InputFileFacts(HOSTILE, 1, 1, HOSTILE),),
        findings=RunFindings((FailureExamples(HOSTILE, 400, 34, (example,)),), None, {HOSTILE: 1}, {HOSTILE: 2}),
    )
    answer = {"name": HOSTILE, "kind": HOSTILE, "people": [HOSTILE]}
    assessment = assessed([answer, GOLD, None], [GOLD] * 3, names=[HOSTILE, "b", "c"])
    flaky = (Flaky(HOSTILE, (True, False), (HOSTILE,)),)
    assessment = dataclasses.replace(assessment, flaky=flaky, notes=(HOSTILE,), against=HOSTILE)
    return page_of(facts, assessment, {HOSTILE: HOSTILE})


def test_hostile_text_stays_text_wherever_it_comes_from() -> None:
    page = hostile_page()
    read = Reader(page)
    assert not read.all("img")
    assert len(read.all("script")) == len(read.all("style")) == 1
    assert page.count("</script>") == page.count("</style>") == 1
    assert "<!--" not in page
    assert "{{ 7 * 7 }}" in read.text
    assert page.count("&lt;/script&gt;") > 25


def test_what_hides_or_turns_text_is_shown_by_name_and_never_as_it_is() -> None:
    page = hostile_page()
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e0fff\ud800-\udfff]",
        page,
    )
    for shown in ("\u241b[31m", "⟨U+202E⟩", "⟨U+200B⟩", "⟨U+E0041⟩", "⟨U+D800⟩"):
        assert shown in page


@given(st.text(st.characters(), max_size=40))
def test_any_text_can_be_encoded_once_it_is_visible_and_stays_so(text: str) -> None:
    shown = visible(text)
    assert shown.encode().decode() == shown == visible(shown)


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(), max_size=30), st.text(st.characters(), max_size=30))
def test_any_answer_leaves_the_page_whole(name: str, prompt: str) -> None:
    assessment = assessed([{**GOLD, "name": name + "?"}], [GOLD], names=["r"])
    read = Reader(page_of(facts_of(job="j" + name), assessment, {"r": prompt}))
    assert len(read.all("script")) == 1


# Small.


def test_a_page_stays_below_its_size_whatever_there_is_to_show() -> None:
    flood = "<&\u202e" * 20_000
    answer = {"name": flood, "kind": "concert", "people": [f"{place} {flood}" for place in range(20)]}
    assessment = assessed([answer] * 250, [GOLD] * 250, names=[f"{place:03d}-{flood[:900]}" for place in range(250)])
    example = Example(3, flood, flood, flood, flood)
    kinds = tuple(FailureExamples(f"Fault{place}", 400, 9, (example,) * 3) for place in range(40))
    inputs = tuple(InputFileFacts(f"{place}-{flood[:2000]}", 1, 1, "ab") for place in range(5_000))
    facts = facts_of(findings=RunFindings(kinds), inputs=inputs, fingerprint={"prompt": flood, "schema": flood})
    page = page_of(facts, assessment, {row.row: flood for row in assessment.graded})
    assert len(page.encode()) < MOST_BYTES
    read = Reader(page)
    shown = len([one for one in read.all("tbody") if "data-status" in one])
    assert f"{shown} of 250 wrong rows are shown." in read.text
    assert "of 5,000 files are shown." in read.text
    assert "more characters" in read.text


def test_a_page_of_usual_size_leaves_nothing_out(read: Reader) -> None:
    assert " are shown." not in read.text


# The numbers of the run.


def test_the_run_s_numbers_are_on_the_page(read: Reader) -> None:
    for told in (
        "rows 1,234 1,200 ok, 34 failed",
        "ok 97.2 %",
        "throughput 61.7 /s",
        "latency, median 0.25 s p95 1.5 s, p99 2.5 s",
        "tokens 6599 5,678 in, 910 out, 11 thinking; 12 cached",
        "cost $12.34 $10.00 per thousand rows",
        "time at work 20 s 2 starts",
        "something is missing",
        "Refused HTTP 400",
        "400 said the server",
        "[user] Say {{ text }}",
        "rows.jsonl 1,234 4096 bytes abababababab",
        "2026-11-22 13:00:00 UTC",
    ):
        assert told in read.text


def test_the_evaluation_s_numbers_are_on_the_page(read: Reader) -> None:
    assessment = an_assessment()
    compared = assessment.comparison
    right = sum(row.correct for row in assessment.graded)
    assert f"{right} of 30 rows right ({100 * right / 30:.1f} %" in read.text
    assert f"{len(compared.broken)} newly broken, 0 newly fixed against base.json." in read.text
    for decision in assessment.decisions:
        assert f"{decision.gate} {decision.message}" in read.text
    for field in assessment.tables.whole.fields:
        counts = " ".join(f"{count:g}" for count in field.counts.values())
        assert re.search(rf"{field.field} {100 * (field.measures['right'].value or 0):.1f} %.*? {counts}", read.text)
    assert "one thing to know" in read.text
    for name in compared.broken:
        assert name in read.text


def test_wrong_rows_show_each_difference_and_the_prompt_beside_it(read: Reader) -> None:
    assert 'name "F ai r" "F ea r" ≠ wrong' in read.text
    assert 'people[1] nothing "Eve" + invented' in read.text
    assert "Prompt the prompt of it" in read.text
    rows = [one for one in read.all("tbody") if "data-status" in one]
    assert len(rows) == sum(not row.correct for row in an_assessment().graded)
    assert {str(one["data-status"]) for one in rows} == {"wrong broken", "failed broken"}


def test_a_plain_run_has_no_trace_of_an_evaluation() -> None:
    read = Reader(page_of(facts_of()))
    assert not [one for one in read.all("section") if one["id"] in {"gates", "fields", "rows", "comparison"}]
    assert "Simulated." in read.text
    assert "Simulated." not in Reader(page_of(facts_of(simulated=False))).text


@pytest.mark.parametrize("status", ["complete", "failed", "stopped", "running"])
def test_a_run_that_has_barely_begun_has_a_page(status: Any) -> None:
    empty = facts_of(
        status=status, ok=0, failed=0, pending=3, seconds=None, timeline=Timeline(()), findings=RunFindings(),
        tokens=dict.fromkeys(("input", "output", "reasoning", "cached"), 0), cost_usd=0.0, notes=(), unpriced=3,
    )  # fmt: skip
    assert "3 not sealed, 1,231 left" in Reader(page_of(empty)).text


# For everybody.


def test_nothing_needs_the_script(read: Reader) -> None:
    """The script only sorts and searches: its form is hidden until it runs, and all else is there without it."""
    hidden = [tag for tag, attributes in read.tags if "hidden" in attributes]
    assert hidden == ["form"]
    assert not read.all("noscript")


def test_tables_say_what_their_heads_are_of_and_pictures_what_they_show(read: Reader) -> None:
    assert all(one.get("scope") in {"col", "row"} for one in read.all("th"))
    for one in read.all("svg"):
        assert one.get("aria-hidden") == "true" or (one.get("role") == "img" and one.get("aria-label"))
    assert ("html", {"lang": "en"}) in read.tags
    assert len(read.all("h1")) == 1


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_what_is_behind_it_in_both_schemes(page: str, scheme: int) -> None:
    """WCAG AA: 4.5 to 1."""
    block = re.findall(r":root \{.*?\}", page, flags=re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    pairs = [
        (ink, ground) for ink in ("ink", "muted", "accent", "good", "bad", "warn") for ground in ("bg", "panel", "soft")
    ]
    pairs += [(kind, f"{kind}-bg") for kind in ("good", "bad", "warn")] + [("accent", "info-bg")]
    for ink, ground in pairs:
        high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


@given(st.text("ab", max_size=8), st.text("ab", max_size=8))
def test_two_texts_are_parted_into_what_they_share_and_what_not(one: str, other: str) -> None:
    first, second = parted(one, other)
    assert (first.head + first.middle + first.tail, second.head + second.middle + second.tail) == (one, other)
    assert (first.head, first.tail) == (second.head, second.tail)
    assert (first.middle == second.middle == "") == (one == other)


# The command.


def test_the_command_writes_the_page_and_says_where(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    shell.rows(3)
    assert shell.pipeline("run", "job.py", "--emulate", "--quiet").code == 0
    done = shell.pipeline("report", "out/a_job")
    assert (done.code, done.out) == (0, "out/a_job/_report.html\n")
    assert "rows 3 3 ok, 0 failed" in Reader((tmp_path / "out/a_job/_report.html").read_text("utf-8")).text
    told = shell.pipeline("report", "out/a_job", "--to", "page.html", "--json").json
    assert told == {"report": "page.html", "bytes": (tmp_path / "page.html").stat().st_size}
    assert shell.pipeline("run", "job.py", "--emulate", "--quiet", "--fresh").code == 0
    assert not (tmp_path / "out/a_job/_report.html").exists()


def test_the_command_refuses_a_folder_without_a_run_and_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    assert shell.pipeline("report", "nowhere").code == 2
    shell.write("job.py", JOB)
    shell.rows(3)
    shell.pipeline("run", "job.py", "--emulate", "--quiet")
    done = shell.pipeline("report", "out/a_job", "--to", "no/such/folder.html")
    assert done.code == 2
    assert "cannot be written" in done.err
