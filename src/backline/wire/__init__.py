"""Sockets, TLS, HTTP/1.1, HTTP/2 and gRPC framing, with their limits. Knows no models and no tensors."""
