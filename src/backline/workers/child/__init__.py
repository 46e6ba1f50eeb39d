"""The program in a worker process: loads a model and runs its batches. Needs only NumPy and msgspec."""
