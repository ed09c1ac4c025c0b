"""Command lines for a folder of `tiny_data.write_files`."""

FIT = ["fit", "--model", "model.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml"]
PROPOSALS = ["proposals", "--data", "data.yaml", "--workers", "0"]
