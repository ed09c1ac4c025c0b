"""Paths of the checkout and of the real data sets, which may be missing."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
SHARED_DATA = ROOT.parent / "shared" / "data"
SHARED_CASES = ROOT.parent / "shared" / "cases"
COCOAPI = SHARED_DATA / "cocoapi"
