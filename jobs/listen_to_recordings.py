"""Audio in: WAV, MP3, FLAC, OGG and M4A."""

from pipeline import Job, audio

job = Job(
    name="listen_to_recordings",
    input="data/recordings.jsonl",
    model="google/gemini-3.5-flash",
    user=["{{ question }}", audio("path")],
    media_root="data/media",
    key="id",
)
