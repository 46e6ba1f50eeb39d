"""Instances in the server's process: inline on the event loop, on threads, or as streams on a pool of
threads.
"""
