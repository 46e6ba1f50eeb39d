"""A conformance suite for servers of the Open Inference Protocol."""
