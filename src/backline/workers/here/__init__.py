"""Instances in this process: on the event loop, on threads, as streams on a pool of threads."""
