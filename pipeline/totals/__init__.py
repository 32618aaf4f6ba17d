"""What a run adds up: what it was charged, which rows failed and why, how far it is.

May import `pipeline.data`, `pipeline.faults` and the standard library. One more figure of a run goes into `counters`
if it is for the display, into `ledger` if it is money and must survive a crash.
"""
