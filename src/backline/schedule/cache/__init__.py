"""The response cache: how responses are stored, how their keys are computed, and a queue that looks requests
up before running them.
"""
