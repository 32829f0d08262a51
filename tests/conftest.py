"""Puts the checkout and payload/ on the path: payload modules import one another as top level, as on a host."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for place in (ROOT, ROOT / "payload"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
