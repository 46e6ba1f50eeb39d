"""Models that call other models: the steps of ensembles, who waits for whom, and what workers may ask of the
server.
"""
