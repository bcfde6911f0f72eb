"""What Google's services call a pod, and how many hosts it has.

In: a name that `llm.plan.pods` knows. Out: a `Pod`.
Left out: shapes and counting, which are the table's there; memory and speed (`llm.chips`).
"""

import math
from typing import NamedTuple

from llm.plan import pods


class Kind(NamedTuple):
    """What all pods of one kind of chip have in common."""

    accelerator: str  # of Compute Engine, before the number
    runtime: str | None  # image of a TPU VM; None: on GKE alone
    gke: str  # value of GKE's node selector
    hosts_of_eight: bool  # whether eight chips may be one host


class Pod(NamedTuple):
    """One or more slices of one shape."""

    name: str
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


KINDS = {
    'v4': Kind('v4', 'tpu-ubuntu2204-base', 'tpu-v4-podslice', False),
    'v5e': Kind('v5litepod', 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', True),
    'v5p': Kind('v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice', False),
    'v6e': Kind('v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', True),
    'tpu7x': Kind('tpu7x', None, 'tpu7x', False),
}


def pod(name: str) -> Pod:
    """The pod of that name; raises UserError where there is none."""
    known = pods.pod(name)
    kind, chips = KINDS[known.kind], math.prod(known.shape)
    hosts = 1 if chips <= 4 or chips == 8 and kind.hosts_of_eight else chips // 4
    return Pod(name, known.slices, chips, hosts, 'x'.join(map(str, known.shape)),
               f'{kind.accelerator}-{name.rpartition("-")[2]}', kind.runtime, kind.gke)
