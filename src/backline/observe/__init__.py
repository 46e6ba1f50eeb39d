"""What people see of the engine: metrics. Nothing here is called on the hot path; it reads the engine's counters."""
