"""`python -m oip_conformance` is the command `oip-conformance`."""

from __future__ import annotations

import sys

from oip_conformance.cli import main

sys.exit(main())
