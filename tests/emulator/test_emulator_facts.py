"""Facts are found in the usual writings of several languages."""

from __future__ import annotations

from datetime import date, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.emulator.answers.facts import Facts, subject_of
from pipeline.emulator.answers.numerals import FoundFact, read_number, scan

ENGLISH = "January February March April May June July August September October November December "
FRENCH = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre "
GERMAN = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember "


def values(found: list[FoundFact]) -> list[str]:
    return [each.value for each in found]


@given(day=st.dates(date(1000, 1, 1), date(9999, 12, 31)))
def test_a_date_is_found_in_all_its_writings(day: date) -> None:
    """ISO, English both ways, French, German, Japanese, and day first with dots."""
    month = day.month - 1
    written = (
        day.isoformat(),
        f"{day.day} {ENGLISH.split()[month]} {day.year:04}",
        f"{ENGLISH.split()[month]} {day.day}, {day.year:04}",
        f"le {day.day} {FRENCH.split()[month]} {day.year:04}",
        f"am {day.day}. {GERMAN.split()[month]} {day.year:04}",
        f"{day.year:04}年{day.month}月{day.day}日",
        f"{day.day:02}.{day.month:02}.{day.year:04}",
    )
    for text in written:
        assert values(scan(f"It is set for {text}.").dates) == [day.isoformat()], text


@given(text=st.text(alphabet=st.characters(categories=["L", "N", "P", "Z", "S"]), max_size=200))
def test_whatever_is_found_is_well_formed(text: str) -> None:
    """Dates exist, times are times and numbers are numbers, in any text."""
    found = scan(text)
    for day in found.dates:
        date.fromisoformat(day.value)
    for moment in found.times:
        time.fromisoformat(moment.value)
    for number in (*found.amounts, *found.numbers):
        float(number.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12-14 March 2026", ["2026-03-12", "2026-03-14"]),
        ("March 3rd, 2026", ["2026-03-03"]),
        ("3rd of May 2025", ["2025-05-03"]),
        ("12 de marzo de 2026", ["2026-03-12"]),
        ("31 February 2026", []),
        ("13/25/2026", []),
        ("call 2026-03-12T10:00", ["2026-03-12"]),
    ],
)
def test_dates_with_their_edges(text: str, expected: list[str]) -> None:
    """Ranges, ordinals, other languages, and dates that no calendar has."""
    assert values(scan(text).dates) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at 14:30", "14:30:00"),
        ("at 2 pm", "14:00:00"),
        ("at 12 am", "00:00:00"),
        ("at 2:05 p.m. sharp", "14:05:00"),
        ("à 14h30", "14:30:00"),
        ("à 9h", "09:00:00"),
        ("um 14 Uhr", "14:00:00"),
        ("14時30分", "14:30:00"),
        ("23:59:58", "23:59:58"),
    ],
)
def test_times_in_their_writings(text: str, expected: str) -> None:
    """Twelve and twenty-four hours, in four languages."""
    assert values(scan(text).times) == [expected]


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ("$1,200.50", ["1200.50"]),
        ("1 250,50 €", ["1250.50"]),
        ("EUR 99", ["99"]),
        ("3.000 euros and £5", ["3000", "5"]),
        ("3000円", ["3000"]),
        ("twenty", []),
    ],
)
def test_amounts_in_their_writings(text: str, amounts: list[str]) -> None:
    """Signs before and after, codes, and both decimal marks."""
    assert values(scan(text).amounts) == amounts


@pytest.mark.parametrize(
    ("numeral", "plain"),
    [
        ("1,250.50", "1250.50"),
        ("1.250,50", "1250.50"),
        ("1'000", "1000"),
        ("3,5", "3.5"),
        ("1,000", "1000"),
        ("7", "7"),
    ],
)
def test_numerals_are_read_by_their_marks(numeral: str, plain: str) -> None:
    """Three digits after a lone mark are thousands."""
    assert read_number(numeral) == plain


def test_digits_of_addresses_and_dates_are_no_numbers() -> None:
    """Only what stands alone counts as a number."""
    text = "Write to a1@b2.org or https://x.org/33 by 2026-03-12 at 10:00, 25 EUR, for 40 people of v2, -3 degrees"
    assert values(scan(text).numbers) == ["40", "-3"]


def test_names_leave_out_sentence_openings_titles_and_places() -> None:
    """Capitalised words count as names when nothing else explains the capital."""
    facts = Facts(
        'On Monday The Director met Ana Sousa and Jean de la Tour in Lisbon. Title: "Big Plans". Then they left.'
    )
    assert "Ana Sousa" in values(list(facts.names))
    assert "Jean de la Tour" in values(list(facts.names))
    assert not {"Lisbon", "Big Plans", "Then", "On Monday"} & set(values(list(facts.names)))


def test_the_subject_of_a_prompt_is_its_marked_block() -> None:
    """Instructions around a block in tags, fences or quotes are not searched for facts."""
    assert subject_of("Today is 2020-01-01.\n<text>\nMeet on 2026-03-12\n</text>") == "Meet on 2026-03-12"
    assert subject_of("Read:\n```\nline\n```") == "line\n"
    assert subject_of("no block") == "no block"
