"""The memory budget: what is held, what loads need, and which versions to unload to make room."""
