"""Instances, which run batches: in this process (`here/`), or in worker processes (`process/`). The seam is
`instance.Instance`.
"""
