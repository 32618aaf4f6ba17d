"""Few-shot examples and a conversation of several messages: in order, roles kept."""

from jobs.extract_events import Event
from pipeline import Job

job = Job(
    name="learn_from_examples",
    input="data/events.jsonl",
    model="google/gemini-3.5-flash-lite",
    system="You read one text and report the event that it announces, as in the examples.",
    examples="data/examples.jsonl",
    messages=[
        {"role": "user", "content": "The next text is in the language {{ language }}."},
        {"role": "assistant", "content": "Send it to me."},
        {"role": "user", "content": "{{ text }}"},
    ],
    schema=Event,
    temperature=0,
    key="id",
)
