"""Runs the command line for `python -m backline`."""

from __future__ import annotations

from backline.cli.main import main

if __name__ == "__main__":
    main()
