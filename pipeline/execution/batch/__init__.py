"""The rows of a run as jobs of a provider's batch prediction: submitted, waited for, collected into the journal.

`BatchStage` is the whole of it; what it leaves is asked online by `Run.execute`. It imports what `execution` may, and
`execution.run` knows nothing of it. One more thing that is done to the answers of a job goes into `collection`.
"""
