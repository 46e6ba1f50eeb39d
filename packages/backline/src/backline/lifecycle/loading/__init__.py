"""Loads a version: turns its files into a warmed-up model with a queue."""
