"""Packages that models written for other servers import, by their names there: a worker finds them here when the real ones are missing."""
