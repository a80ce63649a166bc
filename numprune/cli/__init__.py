"""The command line: `numprune score | prune | eval | sweep | generate | export | bench | serve`.

A command is one file with `add(commands)`, which declares its arguments, and `run(args, console)`; it is made
known in `entry.COMMANDS`.
"""

from numprune.cli.entry import main

__all__ = ["main"]
