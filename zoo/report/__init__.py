"""Results in; `results.json`, `report.md` and one self-contained `report.html` out."""
