"""A run in several processes: the same chunks and the same work, under the limits, budget and progress of one run.

The parent holds the run: its lock, plan, journal and limits. It assigns chunks to worker processes, each with its own
event loop and journal, and records the parts that they write. A worker that dies is replaced; its journal is absorbed
first, so that its chunks resume from there. If the parent dies, its workers end too.
"""
