"""Models with a latency objective: what is learnt of their run times, and what follows for batches and refusals."""
