"""The program in a worker process: it loads a model, and runs the batches that the server sends. Needs only
NumPy and msgspec.
"""
