"""Envelopes, which translate between the bodies of requests and the data that a handler takes and returns."""
