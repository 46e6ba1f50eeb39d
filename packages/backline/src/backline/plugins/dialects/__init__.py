"""Protocols besides the Open Inference Protocol."""
