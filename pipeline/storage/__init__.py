"""Everything that is written: the journal, the dataset, the run folder and the reply cache.

May import the values and the packages below. Names in a run folder are in `run_folder.py`; every write goes through
`durable.py`, so that a crash leaves a file complete or absent.
"""
