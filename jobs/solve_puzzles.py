"""Thinking: a budget of thought, and its summary in `response.reasoning`, apart from the answer."""

from pydantic import BaseModel, Field

from pipeline import Job


class Solution(BaseModel):
    answer: str = Field(description="The bare answer: a number or a word.")


job = Job(
    name="solve_puzzles",
    input="data/puzzles.jsonl",
    model="google/gemini-3.5-flash-lite",
    user="{{ question }}",
    schema=Solution,
    google={"thinking_config": {"include_thoughts": True, "thinking_level": "high"}},
    key="id",
)
