# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Writes events.jsonl and events_gold.jsonl, and the hand-written small files, beside this script.

The prose is in phrases/*.toml, one file per language; this script only puts it together. Every text is made from
a `Scene` (the truth), and the gold is the part of the scene that its text really mentions, so the two cannot
disagree. Running it again writes the same bytes.

Marks in the phrase files::

    <name> <date> <time> <place> <at> <people> <person>   facts of the scene; a text that uses one mentions it
    <olddate> <deadline>                                  dates that are near the event, but are not its date
    "at the [Corn Exchange]"                              a phrase for <at>, and within it the name for <place>
    "Summer Fair@6-8"                                     an event of the months June to August only
    "Lantern Parade#17-18"                                an event that begins between 17 and 18 hours only
"""

import json
import random
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIRST_DAY = date(2025, 10, 1)
DAYS = 425
SOURCES = ("email", "email", "email", "chat", "chat", "web", "letter", "press", "transcript")
BETWEEN = {"chat": "\n", "transcript": " "}
CASUAL = frozenset({"chat", "transcript"})
CATEGORIES = ("meeting", "concert", "conference", "sport", "exhibition", "celebration", "course", "other")
WORKDAYS_ONLY = frozenset({"meeting", "conference", "course"})
WEEKENDS_ONLY = frozenset({"sport", "celebration"})
EVENTS = {"en": 74, "de": 46, "fr": 28, "es": 22, "it": 17, "pt": 13, "nl": 12, "pl": 12, "sv": 7} | {
    "ja": 14, "zh": 12, "ar": 10, "tr": 9
}  # fmt: skip
GOLD = {"en": 50, "de": 36, "fr": 20, "es": 16, "it": 11, "pt": 8, "nl": 8, "pl": 8, "sv": 5} | {
    "ja": 8, "zh": 7, "ar": 6, "tr": 6
}  # fmt: skip
EVENTS_WITHOUT = {"en": 7, "de": 5, "fr": 2, "es": 2, "it": 2, "pt": 1, "nl": 1, "pl": 1, "sv": 1, "ja": 1, "zh": 1} | {
    "ar": 1, "tr": 1
}  # fmt: skip

Language = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """What is true of one event, and how its language writes it."""

    category: str
    name: str
    day: date
    start: time
    at: str
    people: tuple[str, ...]
    old_day: date
    deadline: date
    date_format: str
    time_format: tuple[str, str]

    @property
    def place(self) -> str:
        """The name of the place, out of the phrase for it."""
        return self.at.partition("[")[2].partition("]")[0]


@dataclass(frozen=True)
class Written:
    """A text, the marks it used, and the scene behind it (none: no event)."""

    language: str
    source: str
    text: str
    received: date
    scene: Scene | None
    used: frozenset[str] = frozenset()


class Deck:
    """Draws from many lists so that each list is used up before any of its entries comes again."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)  # noqa: S311  sample data, no secrets
        self._piles: dict[tuple[str, ...], list[str]] = {}

    def draw(self, choices: Sequence[str]) -> str:
        """The next of `choices`."""
        pile = self._piles.setdefault(tuple(choices), [])
        if not pile:
            pile.extend(choices)
            self.random.shuffle(pile)
        return pile.pop()


def load(name: str) -> Language:
    """One phrase file."""
    return tomllib.loads((HERE / "phrases" / f"{name}.toml").read_text(encoding="utf-8"))


def spell_date(language: Language, day: date, form: str) -> str:
    """`day` in one of the language's spellings."""
    digits = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
    return form.format(
        wd=language["weekdays"][day.weekday()], month=language["months"][day.month - 1],
        d=day.day, dd=f"{day.day:02}", m=day.month, mm=f"{day.month:02}", y=day.year,
        reiwa=day.year - 2018, d_ar=str(day.day).translate(digits), y_ar=str(day.year).translate(digits),
    )  # fmt: skip


def spell_time(language: Language, start: time, form: Sequence[str]) -> str:
    """`start` in one of the language's spellings: the first with minutes, the second for full hours."""
    half = 0 if start.hour < 12 else 1 if start.hour < 18 else 2
    return form[0 if start.minute else 1].format(
        H=start.hour, HH=f"{start.hour:02}", MM=f"{start.minute:02}",
        h=(start.hour - 1) % 12 + 1, ap=language["halves"][half],
    )  # fmt: skip


def spell_people(language: Language, people: Sequence[str]) -> str:
    """The names as a list in running text."""
    comma = language.get("comma", ", ")
    return str(language["and"]).join(part for part in (comma.join(people[:-1]), people[-1]) if part)


def make_scene(deck: Deck, language: Language, category: str) -> tuple[Scene, date]:
    """A plausible event, and the day its text is received."""
    theme = language["category"][category]
    name, months, hours = read_name(deck.draw(theme["names"]), theme["hours"])
    day = find_day(deck, language, category, name, months)
    lead = deck.random.randint(10, 50)
    scene = Scene(
        category=category, name=name, day=day,
        start=time(deck.random.choice(hours), deck.random.choice((0, 0, 0, 30, 30, 15, 45))),
        at=deck.draw(theme["places"]),
        people=tuple(deck.random.sample(language["people"], deck.random.choice((2, 2, 3)))),
        old_day=sayable(language, day - timedelta(days=7)),
        deadline=sayable(language, day - timedelta(days=lead // 2)),
        date_format=deck.draw(language["dates"]),
        time_format=tuple(deck.random.choice(language["times"])),
    )  # fmt: skip
    return scene, day - timedelta(days=lead)


def read_name(entry: str, hours: Sequence[int]) -> tuple[str, frozenset[int], Sequence[int]]:
    """The name, the months and the hours of an entry like "Lantern Parade@10-11#17-18"."""
    name, first, last, earliest, latest = re.findall(r"^(.+?)(?:@(\d+)-(\d+))?(?:#(\d+)-(\d+))?$", entry)[0]
    span = (int(last) - int(first)) % 12 + 1 if first else 12
    months = frozenset((int(first or 1) - 1 + step) % 12 + 1 for step in range(span))
    return name, months, range(int(earliest), int(latest) + 1) if earliest else hours


def find_day(deck: Deck, language: Language, category: str, name: str, months: frozenset[int]) -> date:
    """A day on which such an event could be."""
    while True:
        day = FIRST_DAY + timedelta(days=deck.random.randrange(DAYS))
        weekday = day.weekday()
        fits_week = not (category in WORKDAYS_ONLY and weekday > 4) and not (category in WEEKENDS_ONLY and weekday < 4)
        fits_year = "2026" not in name or day.year == 2026
        if day.month in months and fits_week and fits_year and day == sayable(language, day):
            return day


def sayable(language: Language, day: date) -> date:
    """The first day from `day` on whose number needs no special article in this language."""
    while day.day in language.get("avoid_days", ()):
        day += timedelta(days=1)
    return day


def fill(language: Language, template: str, scene: Scene) -> tuple[str, frozenset[str]]:
    """The template with its marks replaced, and the marks."""
    values = {
        "name": scene.name,
        "date": spell_date(language, scene.day, scene.date_format),
        "time": spell_time(language, scene.start, scene.time_format),
        "at": scene.at.replace("[", "").replace("]", ""),
        "place": scene.place,
        "people": spell_people(language, scene.people),
        "person": scene.people[0],
        "olddate": spell_date(language, scene.old_day, scene.date_format),
        "deadline": spell_date(language, scene.deadline, scene.date_format),
    }
    marks = re.compile("<(" + "|".join(values) + ")>")
    text = marks.sub(lambda mark: values[mark[1]], template)
    return text[:1].upper() + text[1:] if template.startswith("<") else text, frozenset(marks.findall(template))


def invitation(deck: Deck, language: Language, source: str, scene: Scene, *, clear: bool) -> str:
    """A template for the sentence that says what is on; `clear` asks for one with all four facts and no other date."""
    invites = language["invites"]
    if not clear and deck.random.random() < 0.12:
        return deck.draw(invites["short"])
    choices = [one for one in invites["casual"] if source == "chat" or is_spoken(one)] if source in CASUAL else []
    choices = choices or [one for one in invites["formal"] if "\n" not in one or source not in CASUAL]
    if scene.start.hour >= 17 and source not in CASUAL:
        choices += invites.get("evening", [])
    if clear:
        choices = [one for one in choices if is_clear(one)] or [one for one in invites["formal"] if is_clear(one)]
    return deck.draw(choices)


def is_spoken(template: str) -> bool:
    """Whether someone could say this aloud: sentences with capitals, and nobody pronounces an emoji."""
    return template[0].isupper() and max(template) < "\U0001f000"


def is_clear(template: str) -> bool:
    """Whether a reader can be in no doubt about what, when and where."""
    wanted = "<name>" in template and "<date>" in template and "<time>" in template
    return wanted and ("<place>" in template or "<at>" in template) and "<olddate>" not in template


def around(deck: Deck, language: Language, scene: Scene, template: str, *, clear: bool) -> list[str]:
    """Templates of sentences to go with an invitation: who is there, what it will be like, how to get in."""
    chance = deck.random.random
    parts = [deck.draw(language["invites"]["cast"])] if chance() < (0.75 if clear else 0.5) else []
    details = language["category"][scene.category]["details"]
    parts += [deck.draw(details) for _ in range(1 if len(details) < 3 or chance() < 0.6 else 2)][: 1 + clear]
    practical = [
        one for one in language["practical"]["any"] if "<deadline>" not in one or ("<date>" in template and not clear)
    ]
    if chance() < 0.6:
        parts.append(deck.draw(practical))
    return list(dict.fromkeys(parts))


def compose(
    deck: Deck, language: Language, source: str, scene: Scene, *, clear: bool, padding: int
) -> tuple[str, frozenset[str]]:
    """The whole text of one source about one scene."""
    template = invitation(deck, language, source, scene, clear=clear)
    terse = not clear and (source == "chat" or template in language["invites"]["short"]) and deck.random.random() < 0.6
    parts = [template, *([] if terse else around(deck, language, scene, template, clear=clear))]
    if not terse:
        opener, closer = deck.draw(language["openers"][source]), deck.draw(language["closers"][source])
        parts = [opener, *parts, "" if is_voicemail(opener) else closer]
    if padding:
        parts = padded(deck, parts, language["news"]["paragraphs"], padding)
    text, used = fill_all(language, [part for part in parts if part], scene)
    return typeset(source, BETWEEN.get(source, "\n\n").join(text)), used


def typeset(source: str, text: str) -> str:
    """The text with the spaces that printed matter of its language has: French binds its marks to their words."""
    if "« " not in text or source not in {"letter", "press"}:
        return text
    return re.sub(r" (?=[:;!?»])|(?<=«) ", "\u00a0", text)


def is_voicemail(opener: str) -> bool:
    """Whether one person speaks to a machine, so that nobody answers."""
    return opener.startswith(("(", "\uff08"))


def fill_all(language: Language, parts: Iterable[str], scene: Scene) -> tuple[list[str], frozenset[str]]:
    """Each part filled, and all the marks."""
    filled = [fill(language, part, scene) for part in parts]
    return [text for text, _ in filled], frozenset().union(*(used for _, used in filled))


def padded(deck: Deck, parts: list[str], paragraphs: Sequence[str], count: int) -> list[str]:
    """The parts inside a newsletter that has `count` paragraphs, or as many as there are, about something else."""
    chosen = sorted(deck.random.sample(range(len(paragraphs)), min(count, len(paragraphs))))
    picked = [paragraphs[number] for number in chosen]
    before = deck.random.randint(0, len(picked))
    return [parts[0], *picked[:before], *parts[1:-1], *picked[before:], parts[-1]]


def write_one(deck: Deck, code: str, source: str = "", *, clear: bool = False, padding: int = 0) -> Written:
    """One text about one event, in `source` or any, with `padding` paragraphs of other news."""
    language = load(code)
    sources = ("email", "letter") if padding else [one for one in SOURCES if one in language["openers"]]
    source = source or deck.random.choice(sources)
    scene, received = make_scene(deck, language, deck.draw(CATEGORIES))
    text, used = compose(deck, language, source, scene, clear=clear, padding=padding)
    return Written(code, source, text, received, scene, used)


def newsletter(language: Language, number: int) -> int:
    """How many paragraphs of other news the text with this number gets: one in eight some, one in sixteen many."""
    if "news" not in language:
        return 0
    return 7 if number % 16 == 5 else 1 + number % 3 if number % 8 == 1 else 0


def write_awkward(deck: Deck, row: Language) -> Written:
    """One of the texts with troublesome characters."""
    language = load(row["language"])
    scene, received = make_scene(deck, language, deck.draw(CATEGORIES))
    text, used = fill(language, row["text"], scene)
    return Written(row["language"], row["source"], text, received, scene, used)


def without_event(deck: Deck, code: str, texts: Iterable[Sequence[str]]) -> list[Written]:
    """The texts in which nothing is announced."""
    return [
        Written(code, source, text, FIRST_DAY + timedelta(days=deck.random.randrange(DAYS - 90)), None)
        for source, text in texts
    ]


def make_events() -> list[dict[str, Any]]:
    """The rows of events.jsonl: shuffled, then numbered; one of them comes twice."""
    deck = Deck("events")
    written = [write_awkward(deck, row) for row in load("awkward")["row"]]
    for code, count in EVENTS.items():
        written += [write_one(deck, code, padding=newsletter(load(code), number)) for number in range(count)]
        written += without_event(deck, code, load(code)["nothing"]["texts"][: EVENTS_WITHOUT[code]])
    deck.random.shuffle(written)
    rows = [
        {"id": f"ev-{number:04}", "language": one.language, "source": one.source}
        | {"received": one.received.isoformat(), "text": one.text}
        for number, one in enumerate(written, 1)
    ]
    first = rows[39]
    again = first | {"received": (date.fromisoformat(first["received"]) + timedelta(days=1)).isoformat()}
    return [*rows[:200], again, *rows[200:]]


def make_gold() -> list[dict[str, Any]]:
    """The rows of events_gold.jsonl, documents together, in order of their ids."""
    deck = Deck("gold")
    documents: list[tuple[str, list[Written]]] = []
    for code, count in GOLD.items():
        golden = max(1, count // 4)
        documents += [("golden", [write_one(deck, code, clear=True)]) for _ in range(golden)]
        documents += [("standard", part) for part in sections(deck, code, count - golden)]
        nothing = without_event(deck, code, load(code)["nothing"]["texts"][EVENTS_WITHOUT[code] :])
        documents += [
            ("golden" if code in {"en", "fr"} and one is nothing[0] else "standard", [one]) for one in nothing
        ]
    deck.random.shuffle(documents)
    numbered = ((number, tier, one) for number, (tier, part) in enumerate(documents, 1) for one in part)
    return [
        {"id": f"gold-{row:04}", "language": one.language, "document": f"doc-{number:03}", "tier": tier}
        | {"received": received(row, expected(one)["date"]), "text": one.text, "expected": expected(one)}
        for row, (number, tier, one) in enumerate(numbered, 1)
    ]


def received(row: int, day: str | None) -> str:
    """A day from one to six weeks before the event, or any day when there is none."""
    on = date.fromisoformat(day) if day else date(2026, 6, 1) + timedelta(days=row - 1)
    return (on - timedelta(days=9 + (row - 1) * 7 % 37)).isoformat()


def sections(deck: Deck, code: str, count: int) -> Iterable[list[Written]]:
    """Documents of one to four sections, `count` sections in all, each about an event of its own."""
    while count:
        size = min(count, deck.random.choice((1, 1, 1, 1, 2, 3, 4)))
        source = "" if size == 1 else deck.random.choice(("web", "press"))
        padding = newsletter(load(code), count) if size == 1 else 0
        yield [write_one(deck, code, source, padding=padding) for _ in range(size)]
        count -= size


def expected(one: Written) -> dict[str, Any]:
    """The gold: what of the scene the text mentions."""
    scene, used = one.scene, one.used
    if scene is None:
        return {"name": None, "date": None, "time": None, "place": None, "category": "other", "participants": []}
    people = scene.people if "people" in used else scene.people[:1] if "person" in used else ()
    return {
        "name": scene.name,
        "date": scene.day.isoformat() if "date" in used else None,
        "time": scene.start.isoformat() if "time" in used else None,
        "place": scene.place if used & {"place", "at"} else None,
        "category": scene.category,
        "participants": list(people),
    }


def contradictions(row: dict[str, Any]) -> list[str]:
    """The expected values that cannot be found in the row's text, in any spelling of its language."""
    language, text, gold = load(row["language"]), row["text"], row["expected"]
    plain = [gold["name"], gold["place"], *gold["participants"]]
    missing = [value for value in plain if value is not None and value.lower() not in text.lower()]
    days = (
        {spell_date(language, date.fromisoformat(gold["date"]), form) for form in language["dates"]}
        if gold["date"]
        else {""}
    )
    times = (
        {spell_time(language, time.fromisoformat(gold["time"]), form) for form in language["times"]}
        if gold["time"]
        else {""}
    )
    missing += [gold["date"]] * (not any(day.lower() in text.lower() for day in days))
    return missing + [gold["time"]] * (not any(clock in text for clock in times))


def write_lines(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line; only the line feed ends a line, whatever a text contains."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / name).write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    """Writes the files, after a last look at the gold."""
    events, gold = make_events(), make_gold()
    wrong = {row["id"]: found for row in gold if (found := contradictions(row))}
    if wrong:
        raise SystemExit(f"gold that its text does not bear out: {wrong}")
    write_lines("events.jsonl", events)
    write_lines("events_gold.jsonl", gold)


if __name__ == "__main__":
    main()
