"""Scheduling scenarios that run alike on real Triton and on Backline: what Triton answers is recorded, and Backline compared with it."""
