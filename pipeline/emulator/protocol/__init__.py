"""Vertex AI's protocol: checks requests, and writes bodies, as Vertex does."""
