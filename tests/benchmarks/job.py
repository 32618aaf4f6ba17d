"""The job of the end-to-end benchmark."""

from pipeline import Job
from tests.benchmarks.contenders import MODEL, SYSTEM, Event

job = Job(name="bench", model=MODEL, system=SYSTEM, user="{{ text }}", schema=Event, key="id")
