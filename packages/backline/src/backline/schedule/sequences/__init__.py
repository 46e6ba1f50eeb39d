"""Sequences, which are requests with the same sequence id: their order, their places on instances, and their
states.
"""
