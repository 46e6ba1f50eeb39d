"""Traces of single requests, written to a trace file like Triton's or sent as OpenTelemetry spans."""
