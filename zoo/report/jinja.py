"""Jinja environment for the report templates."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def make_environment() -> Environment:
    """Jinja environment over `templates/`; values are escaped, undefined names raise."""
    return Environment(
        loader=PackageLoader("zoo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
