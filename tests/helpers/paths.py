"""Where things lie: the checkout, and the real data that only some machines have beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
SHARED_DATA = ROOT.parent / "shared" / "data"
COCOAPI = SHARED_DATA / "cocoapi"
