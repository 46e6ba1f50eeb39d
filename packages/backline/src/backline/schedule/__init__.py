"""Decides which requests run next. Policies, which work on plain data and perform no I/O, make the decisions;
drivers carry them out.
"""
