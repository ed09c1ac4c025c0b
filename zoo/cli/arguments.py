"""Names of the flags of `zoo fit`, `validate` and `test`, known without importing torch.

Their parser takes many seconds to build, so the names are kept in `arguments.json`, and a wrong one is said at once.
`python -m zoo.cli.arguments` writes the file; a test fails when it is out of date. With another version of Lightning
than that of the file, whose Trainer may have other arguments, only the parser decides.
"""

import io
import json
import re
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path

from zoo.errors import InputError
from zoo.io.files import write_atomically

FILE = Path(__file__).with_name("arguments.json")
LIBRARY = "pytorch-lightning"
BUDGETS = ("epochs", "images", "minutes", "steps")

# Their further names depend on a class of the user's.
_OPEN = ("model", "data.train", "data.val", "data.test", "trainer.callbacks", "trainer.logger", "trainer.plugins")


def check_flags(verb: str, args: Sequence[str], has_own_model: bool) -> None:
    """Check the names of all flags.

    Args:
        verb: fit, validate or test.
        args: command line after the verb.
        has_own_model: whether the model may be of a class that does not come with zoo.

    Raises:
        InputError: a flag has an unknown name; with the most similar known one.
    """
    known = json.loads(FILE.read_text())
    if known[LIBRARY] != version(LIBRARY):
        return
    names = known["verbs"][verb]
    for argument in args:
        if not argument.startswith("--"):
            continue
        name = argument[2:].partition("=")[0].removesuffix("+").replace(".init_args.", ".")
        if name in names or _is_open(name, has_own_model):
            continue
        full = _most_similar(name, names)
        hint = f"did you mean --{full}? " if full else ""
        raise InputError(f"unknown flag --{name}; {hint}(see zoo {verb} --help, or --help-all for all flags)")


def _most_similar(name: str, names: Sequence[str]) -> str | None:
    """The known name that ends with the given one, or is the most similar, with or without its prefix."""
    last_parts = {known.rpartition(".")[2]: known for known in names}
    if name in last_parts:
        return last_parts[name]
    near = get_close_matches(name, names, n=1)
    if near:
        return near[0]
    near = get_close_matches(name, last_parts, n=1)
    return last_parts[near[0]] if near else None


def _is_open(name: str, has_own_model: bool) -> bool:
    return any(name.startswith(f"{prefix}.") for prefix in _OPEN if prefix != "model" or has_own_model)


def list_flags() -> dict[str, list[str]]:
    """Names of the flags of each verb, from the parser's help and from the constructors of all detectors."""
    from zoo.cli.training_cli import TrainingCLI
    from zoo.models import MODELS
    from zoo.training.parser_errors import parameter_names

    of_models = {f"model.{name}" for cls in MODELS.values() for name in parameter_names(cls)}
    found = {}
    for verb in ("fit", "validate", "test"):
        text = io.StringIO()
        with redirect_stdout(text), suppress(SystemExit):
            TrainingCLI([verb, "--help"])
        options = [line.split("  ")[1] for line in text.getvalue().splitlines() if line.startswith("  -")]
        names = {name for option in options for name in re.findall(r"--([\w.]+)", option)}
        ours = {"checkpoint", "seed", "help-all", "debug", "model.class_path"}
        if verb == "fit":
            ours |= {*BUDGETS, "model.weights", "model.weights_layout"}
        found[verb] = sorted(names | of_models | ours)
    return found


if __name__ == "__main__":
    content = {LIBRARY: version(LIBRARY), "verbs": list_flags()}
    write_atomically(FILE, json.dumps(content, indent=0) + "\n")
