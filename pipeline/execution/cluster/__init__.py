"""A run over a cluster: tasks work on ranges of its chunks, and share its limits through one limiter.

A task is a shard of the run (`execution.shards`), under limits that are leased to it (`execution.processes`). What
starts the tasks and carries their messages is an executor beside this package: `execution.ray_engine`.
"""
