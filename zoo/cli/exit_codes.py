"""Exit codes of the command line; a preempted training ends with `zoo.errors.Preempted.exit_code`."""

OK = 0
FAILED = 1  # a run failed, a data set has errors, a report does not verify
BAD_INPUT = 2
INTERRUPTED = 130
