"""The places where batches run: instances in the server's process (`here/`) and in workers (`process/`). See
`instance.Instance`.
"""
