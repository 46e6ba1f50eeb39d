"""Decides which requests run next: policies that are pure functions of plain data, and the drivers that carry
out their decisions.
"""
