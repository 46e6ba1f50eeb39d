"""Traces: where the time of single requests went, in Triton's file or as spans of OpenTelemetry."""
