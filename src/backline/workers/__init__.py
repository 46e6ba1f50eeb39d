"""Instances run batches: in this process (`here/`) or in workers (`process/`); see `instance.Instance`."""
