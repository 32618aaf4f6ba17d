"""Safety settings, grounding with web search, and a request tier (`flex`: half the price, slower, `global` only)."""

from pipeline import Job

job = Job(
    name="check_facts",
    input="data/questions.jsonl",
    model="google/gemini-3.5-flash",
    user="Answer with one sentence, and say how sure you are: {{ question }}",
    web_search=True,
    tier="flex",
    google={
        "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_LOW_AND_ABOVE"}],
    },
    key="id",
)
