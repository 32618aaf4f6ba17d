"""Streaming: the same rows come out as without, and `response.first_token_s` says when each answer began."""

from pipeline import Job

job = Job(
    name="summarise_events",
    input="data/events.jsonl",
    model="google/gemini-3.5-flash-lite",
    system="Summarise the text in one sentence, in its own language.",
    user="{{ text }}",
    reasoning_effort="minimal",
    stream=True,
    key="id",
    keep=["id", "language"],
)
