"""What each kind of TPU can do: one table, read by the speed that a run reports and by the plan of a pod.

In: the name that people use for a kind of chip, or what JAX calls it. Out: `Chip`, per JAX device.
Left out: how chips are wired into pods (`plan/pods.py`).

Sources: cloud.google.com/tpu/docs, "System architecture" of each kind, whose "bidirectional" interconnect is halved
here; v4's interconnect: arXiv:2304.01433, table 4; the datacenter's network of v5e: 6.4 Tbps a pod of 256, of v4: a
host's 200 Gbps over its four chips. Memory that a program may use: what the compiler itself refuses to pass.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts it: a chip, of tpu7x half a chip."""

    device_kind: str  # jax.Device.device_kind
    flops_per_second: float  # dense bfloat16
    hbm_gib: float  # that a program may use
    hbm_bytes_per_second: float
    ici_bytes_per_second: float  # out of the device, all links together, one way
    dcn_bytes_per_second: float  # out of the device, between slices


CHIPS = {
    'v4': Chip('TPU v4', 275e12, 30.75, 1228e9, 300e9, 6.25e9),
    'v5e': Chip('TPU v5 lite', 197e12, 15.75, 819e9, 200e9, 3.125e9),
    'v5p': Chip('TPU v5', 459e12, 95.74, 2765e9, 600e9, 6.25e9),
    'v6e': Chip('TPU v6 lite', 918e12, 31.25, 1640e9, 400e9, 12.5e9),
    'tpu7x': Chip('TPU7x', 2307e12 / 2, 94.75, 7380e9 / 2, 600e9 / 2, 12.5e9 / 2),
}


def peak_flops(device_kind: str) -> float:
    """Dense bfloat16 FLOP/s of a device of that kind; 0: unknown."""
    return {chip.device_kind: chip.flops_per_second for chip in CHIPS.values()}.get(device_kind, 0.0)


def mfu(per_second: float, flops: float, peak_flops_per_second: float) -> float:
    """Share of the peak that a model's arithmetic takes: so many tokens a second of so many FLOPs each (or steps)."""
    return per_second * flops / peak_flops_per_second
