"""Batch prediction: jobs over objects of the buckets, and OpenAI's files and batches; answered as chat requests are."""
