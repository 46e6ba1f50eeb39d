"""Instances: where a batch runs. On the loop, on a thread; the seam is `instance.Instance`."""
