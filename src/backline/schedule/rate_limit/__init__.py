"""Instances that share named resources."""
