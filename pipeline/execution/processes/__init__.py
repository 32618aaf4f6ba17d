"""A run in several processes: the same chunks and the same work, with limits, budget and progress of the whole run.

The parent holds the run: its lock, plan, journal and limits. It hands chunks to worker processes, each with an event
loop and a journal of its own, and records the parts that they write. A worker that dies is replaced; its journal is
taken over first, so that its chunks go on from there. A parent that dies takes its workers with it.
"""
