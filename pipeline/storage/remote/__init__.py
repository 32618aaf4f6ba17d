"""A run whose output is in an object store. The run folder stays on the local disk; a bucket follows it.

Everything here is written under conditions of the store ("create only", "only if unchanged"), so that two writers
cannot overwrite each other. docs/object-stores.md says in which order, and why that is safe.
"""
