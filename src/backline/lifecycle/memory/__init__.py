"""The memory budget: how much is held, how much loads need, and which versions to unload to make room."""
