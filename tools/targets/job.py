"""What every target is given, and what it makes of it: commands, each a list of words.

In: the flags of `llm.main`, a name. Out: the command of one process; `Step`s to run one after another.
Left out: how each system starts it (the other files here).

Words are quoted only where a system wants one string, and then by the library of its language.
"""

from collections.abc import Sequence
import dataclasses
import re
import shlex
from typing import NamedTuple

from llm.errors import UserError

_LABEL = re.compile(r'[a-z]([-a-z0-9]*[a-z0-9])?')  # RFC 1123, and a letter first, as services want it
_NAME_LENGTH = 40  # Kubernetes allows a pod's name 63, of which JobSet takes up to 21 for numbers


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of `llm.main`, wherever it is started."""

    name: str
    config: str
    workdir: str
    overrides: tuple[str, ...] = ()  # --config.KEY=VALUE

    def __post_init__(self):
        label('--name', self.name)
        for word in self.main:
            _transportable(word)

    @property
    def main(self) -> list[str]:
        """What `python` is given to run the config, unsupervised."""
        return ['-m', 'llm.main', f'--config={self.config}', f'--workdir={self.workdir}', *self.overrides]

    def supervised(self, python: str, *flags: str) -> list[str]:
        """The command of one process, started again where its exit code says so."""
        return [python, '-m', 'tools.supervise', '--', python, *self.main, *flags]


class Step(NamedTuple):
    """One command of a launch."""

    argv: Sequence[str]
    stdin: str | None = None  # what is submitted
    script: str | None = None  # what argv makes a shell run

    def __str__(self) -> str:
        """What a dry run prints."""
        return next(text for text in (self.stdin, self.script, shlex.join(self.argv) + '\n') if text is not None)


def shell(script: str) -> Step:
    """A step that is a script of bash."""
    return Step(['bash', '-c', script], script=script)


def label(flag: str, value: str) -> str:
    """The value, if it can name a thing in every system; raises UserError."""
    if not _LABEL.fullmatch(value) or len(value) > _NAME_LENGTH:
        raise UserError(f'{flag}={value!r} cannot name a job; use at most {_NAME_LENGTH} of a-z, 0-9 and -, a letter '
                        f'first and no - last')
    return value


def word(flag: str, value: str) -> str:
    """The value, if it is one plain word: for places that cannot be quoted; raises UserError."""
    if not re.fullmatch(r'[A-Za-z0-9][\w./:@-]*', value, re.ASCII):
        raise UserError(f'{flag}={value!r} is not a plain word; use letters, digits and _ . / : @ -')
    return value


def _transportable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f'{text!r} is not UTF-8; use another path or value') from None
    if '\0' in text:
        raise UserError(f'{text!r} holds a NUL, which no command can be given; leave it out')
