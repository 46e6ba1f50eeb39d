"""Malicious clients that attack a server on the loopback interface, and an honest client that measures it."""
