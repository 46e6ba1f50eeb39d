"""Scheduling with a latency objective. Learned run times determine the batch sizes, and which requests are
refused early.
"""
