"""Metrics, log, traces and recordings. Requests only update counters, which scrapes read as metrics."""
