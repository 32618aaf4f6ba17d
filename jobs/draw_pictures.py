"""Image output: bytes in `response.media`; `pipeline show out/draw_pictures --media DIR` writes them to files."""

from pipeline import Job

job = Job(
    name="draw_pictures",
    input="data/pictures.jsonl",
    model="google/gemini-3.1-flash-image",
    user="{{ prompt }}",
    modalities=["image"],
    key="id",
)
