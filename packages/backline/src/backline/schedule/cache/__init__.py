"""The response cache: the storage of responses, the computation of their keys, and a queue that looks up each
request in the cache before the request is run.
"""
