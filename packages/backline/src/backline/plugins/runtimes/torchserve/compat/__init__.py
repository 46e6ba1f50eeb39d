"""Replacements for Python packages of other model servers, which models written for these servers import. A
worker process uses a replacement if the real package is not installed.
"""
