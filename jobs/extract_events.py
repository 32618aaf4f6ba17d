"""Events out of letters, mails, chats and press cuttings in a dozen languages."""

import datetime as dt
from enum import StrEnum

from pydantic import BaseModel, Field

from pipeline import Job


class Category(StrEnum):
    meeting = "meeting"
    concert = "concert"
    conference = "conference"
    sport = "sport"
    exhibition = "exhibition"
    celebration = "celebration"
    course = "course"
    other = "other"


class Event(BaseModel):
    """The one event that a text announces; everything is null when it announces none."""

    name: str | None = Field(description="What the event is called, in the text's own words.")
    date: dt.date | None = Field(description="The day on which it takes place.")
    time: dt.time | None = Field(description="The local time at which it begins.")
    place: str | None = Field(description="Where it takes place, as the text says it.")
    category: Category = Field(description="What kind of event it is; `other` when there is none.")
    participants: list[str] = Field(default=[], description="The people who take part, by name.")


job = Job(
    name="extract_events",
    input="data/events.jsonl",
    output="out/extract_events",
    model="google/gemini-3.5-flash-lite",
    system="You read one text and report the event that it announces. Never invent what the text does not say.",
    user="{{ text }}\n\n(Received on {{ received }}.)",
    schema=Event,
    temperature=0,
    key="id",
)
