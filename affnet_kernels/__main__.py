"""`python -m affnet_kernels COMMAND`: every command is a module of `affnet_kernels.commands`."""

from __future__ import annotations

import argparse
import sys

from affnet_kernels.commands import check, classify, convert, detect, evaluate, export, info, segment, show, train, warm

COMMANDS = (info, check, warm, convert, show, classify, detect, segment, export, train, evaluate)


def main(
    arguments: list[str] | None = None,
) -> int:
    """Run a command: its own status, or 2 after one sentence about what was wrong with its input."""
    parser = argparse.ArgumentParser(prog="python -m affnet_kernels", description="AFFNet's mixer and networks.")
    names = [command.__name__.rpartition(".")[2] for command in COMMANDS]
    subparsers = parser.add_subparsers(required=True, metavar=" | ".join(names))
    for name, command in zip(names, COMMANDS, strict=True):
        subparser = subparsers.add_parser(name, help=command.run.__doc__, description=command.run.__doc__)
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    options = parser.parse_args(arguments)
    try:
        return int(options.command.run(options))
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
