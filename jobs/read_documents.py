"""PDF and video in."""

from pipeline import Job, media

job = Job(
    name="read_documents",
    input="data/documents.jsonl",
    model="google/gemini-3.5-flash",
    user=["{{ question }}", media("path")],
    media_root="data/media",
    key="id",
)
