"""Structured output by a JSON Schema file, with several answers a row: `parsed` is then a list."""

from pipeline import Job

job = Job(
    name="sort_tickets",
    input="data/tickets.parquet",
    model="google/gemini-3.5-flash-lite",
    user="Sort this support ticket.\n\n{{ text }}",
    schema="jobs/ticket.schema.json",
    n=3,
    temperature=1.0,
    key="ticket_id",
)
