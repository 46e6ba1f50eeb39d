"""Instances in this process: inline on the event loop, on threads, or as streams on a pool of threads."""
