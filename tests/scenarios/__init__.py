"""Scheduling scenarios run against real Triton, whose answers are recorded, and compared with Backline."""
