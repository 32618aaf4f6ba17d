"""Where data is: on this machine, or in an object store. Every path and address of a user is read here.

May import `pipeline.faults`.
"""
