"""Flags of tools: a mistake in one is a single line on the screen and exit code 2.

In: arguments, as argparse has them. Out: a `UserError`, or what a tool ends with after one.
Left out: flags of `llm.main` and of `tools.plan`, which are absl's.
"""

import argparse
from collections.abc import Callable
import sys

from llm.errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse prints how it is used."""

    def error(self, message: str):
        raise UserError(' '.join(message.split()))


def ended(main: Callable[[], int]) -> int:
    """The exit code of a tool that needs no JAX; those that do have `llm.main.guarded`."""
    try:
        return main()
    except UserError as mistake:
        print(f'error: {mistake}', file=sys.stderr)
        return mistake.exit_code
