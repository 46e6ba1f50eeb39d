"""Which versions are in memory: the budget, evictions, and stand-ins for unloaded versions."""
