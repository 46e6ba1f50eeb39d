"""Instances that share named resources, and wait for them."""
