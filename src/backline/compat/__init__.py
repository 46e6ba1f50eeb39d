"""Replacements for packages of other servers that models import. A worker process uses a replacement if the
real package is not installed.
"""
