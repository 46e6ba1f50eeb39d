"""Metrics, logs, traces and recordings. Requests only update counters; a scrape turns the counters into
metrics.
"""
