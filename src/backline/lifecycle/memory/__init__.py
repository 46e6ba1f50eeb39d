"""The memory budget: how much memory is used, how much loads need, and which versions to unload for them."""
