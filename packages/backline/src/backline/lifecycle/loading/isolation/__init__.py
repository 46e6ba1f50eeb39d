"""Tries model files in separate processes, so that a file that crashes its runtime does not crash the
server.
"""
