"""Which model versions are live, and how they get there: targets, the plan, loads, labels, unloads."""
