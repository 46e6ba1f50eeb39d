"""Scheduling under a latency objective: learned run times, batch sizes, and early refusals."""
