"""Batch prediction: many requests as one job of the provider, at half the price; answers hours later, in any order.

Three wire families behind one interface, `backend.BatchBackend`: Gemini on Vertex AI (native requests), open models on
Vertex AI (OpenAI's lines in Cloud Storage), and OpenAI's files and batches. To add one, write a backend and choose it
in `selection.py`.
"""
