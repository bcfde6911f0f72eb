"""Pods by the names that people use: v4-8, v5e-256, v5p-128, v6e-256, tpu7x-128, `2x v5e-256`.

In: a name. Out: a `Pod`: how many hosts, and what Google's services call it.
Left out: memory and speed.

The number counts cores for v4 and v5p, devices for tpu7x (two of either in a chip), and chips for v5e and v6e.
"""

import re
from typing import NamedTuple

from llm.errors import UserError


class Generation(NamedTuple):
    """What all pods of one kind of chip have in common."""

    number_per_chip: int  # by which names count
    shapes: dict[int, str]  # chips -> topology
    accelerator: str  # of Compute Engine, before the number
    runtime: str | None  # image of a TPU VM; None: on GKE alone
    gke: str  # value of GKE's node selector
    hosts_of_eight: bool  # whether eight chips may be one host


class Pod(NamedTuple):
    """One or more slices of one shape."""

    name: str  # without the slices
    slices: int
    chips: int  # of a slice
    hosts: int  # of a slice
    topology: str
    accelerator_type: str  # of Compute Engine
    runtime: str | None
    gke_accelerator: str

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts


_FLAT = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
_CUBES = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8', 512: '8x8x8',
          1024: '8x8x16', 2048: '8x16x16', 4096: '16x16x16'}
GENERATIONS = {
    'v4': Generation(2, {chips: shape for chips, shape in _CUBES.items() if chips < 4096}, 'v4',
                     'tpu-ubuntu2204-base', 'tpu-v4-podslice', False),
    'v5e': Generation(1, _FLAT, 'v5litepod', 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', True),
    'v5p': Generation(2, _CUBES | {6144: '16x16x24', 8960: '16x20x28'}, 'v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice',
                      False),
    'v6e': Generation(1, _FLAT, 'v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', True),
    'tpu7x': Generation(2, _CUBES | {8192: '16x16x32'}, 'tpu7x', None, 'tpu7x', False),
}
_NAME = re.compile(r'(?:(\d{1,3})\s*x\s+)?([a-z0-9]+)-(\d{1,6})', re.ASCII)


def pod(name: str) -> Pod:
    """The pod of that name; raises UserError where there is none."""
    match = _NAME.fullmatch(name)
    if not match or match[2] not in GENERATIONS or match[1] and int(match[1]) < 1:
        raise UserError(f"--pod={name!r} is not known; use {', '.join(GENERATIONS)} with a number, e.g. v5p-128, or "
                        f"'2x v5e-256' for two slices")
    slices, kind, number = int(match[1] or 1), match[2], int(match[3])
    generation = GENERATIONS[kind]
    chips, rest = divmod(number, generation.number_per_chip)
    if rest or chips not in generation.shapes:
        sizes = ', '.join(str(known * generation.number_per_chip) for known in generation.shapes)
        raise UserError(f'--pod={name!r}: there is no slice of that size; use {kind}- with one of {sizes}')
    hosts = 1 if chips <= 4 or chips == 8 and generation.hosts_of_eight else chips // 4
    return Pod(f'{kind}-{number}', slices, chips, hosts, generation.shapes[chips],
               f'{generation.accelerator}-{number}', generation.runtime, generation.gke)
