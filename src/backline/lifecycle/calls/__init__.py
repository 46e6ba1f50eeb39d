"""Models that ask other models: which steps an ensemble has, which calls wait for which, and what a worker may ask of the server."""
