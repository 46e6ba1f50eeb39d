"""Instances run batches, in the server's process (`here/`) or in workers (`process/`); see
`instance.Instance`.
"""
