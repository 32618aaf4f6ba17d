"""Graders compare an answer with the expected one, leaf by leaf. Pure.

To add a grader, add a module here and its name in `pipeline.evaluation`.
"""
