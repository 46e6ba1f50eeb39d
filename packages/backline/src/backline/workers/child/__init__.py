"""The program of a worker process, which loads a model and runs batches. Needs only NumPy and msgspec."""
