"""Datatypes, tensors, signatures, devices, and what callers ask and models answer."""
