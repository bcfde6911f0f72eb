"""One workload, ours and the peers' in turns: A B A B, only one of them computing at a time.

In: a workload, a number of rounds. Out: `Comparison`s, one for each measure and peer, with every turn that was taken.
Left out: what a turn is (`ours/`, `peers/`), printing (`table.py`).
"""

from collections.abc import Callable
import contextlib
import dataclasses
import statistics
from typing import Any

from tools.bench.process import Died, Worker
from tools.bench.venvs import python_of
from tools.bench.workloads import job, Workload


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A measure of a workload: ours, turn by turn, and a peer's of the same rounds, or why there are none."""

    workload: str
    about: str
    measure: str
    ours: list[float]
    share: float | None  # of the measured matmul peak; None: the arithmetic is not known
    packages: dict[str, str]
    peer: str = ''
    theirs: list[float] = dataclasses.field(default_factory=list)
    missing: str = ''
    job: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """How many times faster ours was, round by round."""
        more = self.measure.endswith('/s')
        return [ours / theirs if more else theirs / ours for ours, theirs in zip(self.ours, self.theirs)]

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {'ratios': self.ratios}


def compare(name: str, workload: Workload, *, rounds: int, peers: bool, smoke: bool, peak: float,
            say: Callable[[str], None]) -> list[Comparison]:
    """Every worker is warm before the first round; a peer that fails is named with what it said."""
    asked, missing = job(workload, smoke), {}
    turns: dict[str, list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        say(f'{name}  starting')
        workers = {'': stack.enter_context(Worker(python_of('', say), f'ours.{workload.module}', asked))}
        for peer in workload.peers if peers else ():
            say(f'{name}  starting {peer.name}')
            try:
                workers[peer.name] = stack.enter_context(
                    Worker(python_of(peer.environment, say), f'peers.{peer.module}', asked | peer.adds))
            except Died as death:
                missing[peer.name] = str(death)
        for index in range(rounds):
            for who, worker in workers.items():
                say(f'{name}  round {index + 1} of {rounds}  {who or "ours"}')
                try:
                    if who not in missing:
                        turns.setdefault(who, []).append(worker.turn())
                except Died as death:
                    if not who:
                        raise
                    missing[who] = str(death)
        ours = workers['']
    return [comparison for measure in turns[''][0]
            for comparison in _of_measure(name, workload, measure, turns, missing, asked, workers, ours.flops / peak)]


def _of_measure(name, workload, measure, turns, missing, asked, workers, share_of_one) -> list[Comparison]:
    """One for each peer, or one alone without peers."""
    ours = [turn[measure] for turn in turns['']]
    middle = statistics.median(ours)
    first = measure == next(iter(turns[''][0]))
    share = share_of_one * (middle if measure.endswith('/s') else 1 / middle) if first and share_of_one else None
    alone = Comparison(name, workload.about, measure, ours, share, dict(workers[''].packages), job=asked)
    beside = []
    for peer in (peer.name for peer in workload.peers if peer.name in turns or peer.name in missing):
        theirs = [turn[measure] for turn in turns.get(peer, ()) if measure in turn]
        if theirs or peer in missing:
            packages = workers[peer].packages if peer in workers else {}
            beside.append(dataclasses.replace(alone, peer=peer, theirs=theirs, missing=missing.get(peer, ''),
                                              packages=alone.packages | packages))
    return beside or [alone]
