"""Models that call other models: steps of ensembles, waits, and what workers may ask of the server."""
