"""The lab's helpers under the name that the tests of this package import them by."""

from tests.running import ROOT, Inv, Lab

__all__ = ["ROOT", "Inv", "Lab"]
