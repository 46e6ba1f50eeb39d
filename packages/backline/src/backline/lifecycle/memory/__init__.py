"""The memory budget: how much memory is in use, how much each load needs, and which versions to unload to
make room.
"""
