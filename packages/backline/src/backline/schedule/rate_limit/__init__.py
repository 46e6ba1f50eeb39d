"""The rate limiter: decides which instances may run when they share named resources."""
