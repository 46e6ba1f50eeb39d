"""Scheduling with a latency objective: learned run times, batch sizes, and early refusals."""
