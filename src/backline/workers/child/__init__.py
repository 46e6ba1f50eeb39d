"""The program in a worker process: it loads a model, and runs what the server sends. Needs NumPy and
msgspec only.
"""
