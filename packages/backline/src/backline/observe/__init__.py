"""Metrics, logs, traces and recordings. For metrics, the server only updates counters while it handles
requests; a scrape converts the counters to metrics.
"""
