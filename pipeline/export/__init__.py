"""The rows of a run in one file of another format: CSV, JSONL or Parquet.

May import everything but evaluations, reports and the command line. One more format is a writer in `formats.py`.
"""
