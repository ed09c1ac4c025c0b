"""`zoo <verb> ...`: dispatch to the verbs, exit codes, and one-line error messages.

The module of a verb is imported when the verb is called, so that `zoo --help` and a mistyped verb respond immediately.
Unusable input gives one line on stderr and exit code 2; `--debug`, or ZOO_DEBUG=1, also prints the traceback.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from zoo.cli.exit_codes import BAD_INPUT, FAILED, INTERRUPTED, OK
from zoo.cli.verbs import VERBS
from zoo.errors import InputError, Preempted, SharedInputError
from zoo.io.parent import end_with_starter, start_others_by_command

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: arguments without the program's name; those of the process if not given.

    Returns:
        The exit code: 0 success, 1 a run failed, 2 bad input, 130 interrupted, 143 preempted.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments or os.environ.get("ZOO_DEBUG", "0") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return OK
    if arguments[0] == "--version":
        from zoo import __version__

        print(__version__)
        return OK
    end_with_starter()
    start_others_by_command()
    try:
        return _call(arguments[0], arguments[1:])
    except SystemExit as exit_request:  # --help and --print_config
        code = exit_request.code
        return code if isinstance(code, int) else OK if code is None else FAILED
    except Preempted as preemption:
        if str(preemption):
            _print_error(f"zoo: {preemption}")
        return preemption.exit_code
    except KeyboardInterrupt as interrupt:
        _print_error(f"\nzoo: {str(interrupt) or 'interrupted'}")
        return INTERRUPTED
    except Exception as error:
        input_error = _find_input_error(error) or _find_disk_error(error)
        if input_error is None:
            raise
        if debug:
            traceback.print_exc()
        if not isinstance(input_error, SharedInputError):
            _print_error(f"zoo: {' '.join(str(input_error).split())}")
        return BAD_INPUT


def _print_error(line: str) -> None:
    with suppress(OSError):  # of `zoo ... 2>&1 | tee log`, Ctrl-C ends the reader first
        print(line, file=sys.stderr, flush=True)


def _call(verb: str, args: list[str]) -> int:
    if verb not in VERBS:
        raise InputError(f"unknown verb {verb!r}; choose from {', '.join(VERBS)}")
    module = import_module(f"zoo.cli.{VERBS[verb].module}")
    code: int = getattr(module, verb)(args)
    return code


def _find_input_error(error: BaseException) -> InputError | None:
    if "zoo.training.configuration" not in sys.modules:  # nothing that wraps errors has been imported
        return error if isinstance(error, InputError) else None
    from zoo.training.configuration import find_input_error

    return find_input_error(error)


def _find_disk_error(error: BaseException) -> InputError | None:
    """An error of a full or read-only disk, also as the cause of another one, as an `InputError`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            return InputError(
                f"{cause.strerror}; free or choose another disk, and run the same command again", cause.filename
            )
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _overview() -> str:
    lines = ["Train and compare object detectors: same data, same budget, same evaluation, one report.", ""]
    lines += [f"  zoo {name:10s} {verb.description}" for name, verb in VERBS.items()]
    lines += [
        "",
        "  zoo fit --model configs/models/retinanet_tiny.yaml --data configs/data/shapes.yaml \\",
        "          --trainer configs/trainers/cpu.yaml",
        "  zoo compare               compares all detectors on the built-in shapes on a CPU",
        "  zoo compare --data DIR    fine-tunes all detectors on your images and compares them",
        "",
        "zoo <verb> --help lists the flags of a verb; --debug prints the traceback of an error.",
    ]
    return "\n".join(lines)
