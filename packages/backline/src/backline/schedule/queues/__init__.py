"""Queues, which hold the waiting requests of a version and decide which request comes next."""
