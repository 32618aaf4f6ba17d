"""Graders: how one answer is compared with what was expected, leaf by leaf. Pure.

One more grader is a module here, and a name in `pipeline.evaluation`.
"""
