"""The reply cache: replies by the digests of their requests, so that what was paid once is not paid again.

One SQLite file in WAL mode that several runs may use at once, private, because it holds what rows say. `store` is the
cache of a run at work, `keeping` what people do with it, `database` the file itself. What the keys are made of is said
in `pipeline.policy.cache`.
"""

from pipeline.storage.reply_cache.admin import CacheStats, export, holdings, import_from, prune, size_of
from pipeline.storage.reply_cache.file import FILE
from pipeline.storage.reply_cache.store import Cache

__all__ = ["FILE", "Cache", "CacheStats", "export", "holdings", "import_from", "prune", "size_of"]
