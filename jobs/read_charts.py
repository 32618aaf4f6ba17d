"""Images in: charts, receipts and shapes, one or several a row, from files below `media_root`."""

from pydantic import BaseModel, Field

from pipeline import Job, image


class Reading(BaseModel):
    answer: str = Field(description="The bare answer: a number or a word.")
    what_is_shown: str = Field(description="What the pictures show, in one sentence.")


job = Job(
    name="read_charts",
    input="data/images.jsonl",
    model="google/gemini-3.5-flash",
    user=["{{ question }}", image("paths")],
    media_root="data/media",
    schema=Reading,
    key="id",
)
