"""Instances in this process: inline on the event loop, on threads, as streams on a pool of threads."""
