"""JSON Schema (draft 2020-12) of `results.json`, generated from the data classes."""

from pathlib import Path
from typing import Any

import msgspec

from zoo.io.files import encode_json
from zoo.report.results import Results

SCHEMA_FILE = Path(__file__).with_name("results.schema.json")


def make_schema() -> dict[str, Any]:
    """JSON Schema of `Results`; every number may be null (NaN here, null in the file)."""
    schema = _allow_null(msgspec.json.schema(Results))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of a comparison of object detectors",
        "description": "Written by `zoo compare`. Accuracies are 0 to 1; null means undefined or not measured.",
        **schema,
    }


def write_schema(path: Path = SCHEMA_FILE) -> None:
    """Write the published schema beside this file."""
    path.write_bytes(encode_json(make_schema()))


def _allow_null(node: Any) -> Any:
    if isinstance(node, list):
        return [_allow_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "number":
        return {**node, "type": ["number", "null"]}
    return {key: _allow_null(value) for key, value in node.items()}


if __name__ == "__main__":
    write_schema()
