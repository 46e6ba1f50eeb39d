"""Metrics, log, traces and recordings. Metrics are read from counters, so the hot path calls nothing here."""
