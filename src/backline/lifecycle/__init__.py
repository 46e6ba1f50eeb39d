"""Which model versions should be live, and the steps to get there: inspect, load, prove, measure, serve."""
