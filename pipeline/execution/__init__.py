"""A run: opened, executed, monitored and finished; in one process (`run`) or several (`processes`).

May import everything but evaluations, reports and the command line. The engine does nothing but move rows between two
bounded streams: a new capability is a policy or a source, and seldom a change to `engine.py`.
"""
