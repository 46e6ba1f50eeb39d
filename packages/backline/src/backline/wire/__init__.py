"""Sockets, TLS, HTTP/1.1, HTTP/2 and gRPC framing, with their limits. Contains nothing about models or
tensors.
"""
