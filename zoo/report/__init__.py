"""Reports of a comparison: `results.json`, `report.md` and one self-contained `report.html`."""
