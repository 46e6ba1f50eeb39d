"""Sequences: the order, places and state of requests that share an id."""
