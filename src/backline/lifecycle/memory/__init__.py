"""Which of the versions that are served are in memory: the budget, who makes room for whom, and what stands in for one that is not."""
