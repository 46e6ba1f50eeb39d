"""Traces of single requests, in Triton's trace file or as OpenTelemetry spans."""
