"""Which model versions are live, and the steps to get there: what is wanted, the plan, loads, labels, and the end of it."""
