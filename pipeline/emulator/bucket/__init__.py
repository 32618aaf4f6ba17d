"""A local Cloud Storage, as its XML API: objects in memory, with generations and preconditions."""
