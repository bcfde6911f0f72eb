"""Pods by the names that people use, as topologies that the TPU compiler knows: one table.

In: `v4-8`, `v5e-256`, `v5p-128`, `v6e-64`, `tpu7x-128`, or `2x v5e-256` for two slices. Out: `Pod`, its devices.
Left out: what one chip can do (`llm.chips`), the mesh over the devices (`llm.sharding`).

The number counts chips for v5e and v6e, and TensorCores, two a chip, for v4, v5p and tpu7x.
"""

import dataclasses
import importlib.util
import math
import re

from llm.chips import Chip, CHIPS
from llm.door import nearest
from llm.errors import UserError

_FLAT = {4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
_CUBES = {8: '2x2x1', 16: '2x2x2', 32: '2x2x4', 64: '2x4x4', 128: '4x4x4', 256: '4x4x8', 512: '4x8x8',
          1024: '8x8x8', 2048: '8x8x16', 4096: '8x16x16', 8192: '16x16x16', 12_288: '16x16x24'}
# Kind of chip -> the compiler's name of it, its configuration of cores, chips along each axis by the name's number.
_KINDS = {
    'v4': ('v4', 'megacore', {size: shape for size, shape in _CUBES.items() if size <= 4096}),
    'v5e': ('v5e', 'default', _FLAT),
    'v5p': ('v5', 'megacore', _CUBES | {17_920: '16x20x28'}),
    'v6e': ('v6e', 'default', _FLAT),
    'tpu7x': ('tpu7x', 'default', _CUBES | {16_384: '16x16x32'}),
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """Slices of one shape; of several, only the datacenter's network joins them."""

    name: str
    kind: str  # of chip
    shape: tuple[int, ...]  # chips along each axis of a slice
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def device_count(self) -> int:
        return math.prod(self.shape) * self.slices * (2 if self.kind == 'tpu7x' else 1)

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Which axes close to a ring: whole cubes of 4 x 4 x 4 are joined by optical switches; of v5e and v6e only 16
        chips in a row are. Without it the compiler plans for a mesh (v5p-128: 58 % more on the wire)."""
        if len(self.shape) == 3:
            return tuple(all(size % 4 == 0 for size in self.shape) for _ in self.shape)
        return tuple(size == 16 for size in self.shape) + (False,)

    def devices(self) -> list:
        """As the TPU compiler describes them; there need be no TPU."""
        from jax.experimental import topologies  # seconds, which whoever wants a name alone need not wait
        if importlib.util.find_spec('libtpu') is None:
            raise UserError("libtpu is not installed, which compiles for TPUs; pip install --editable '.[tpu]'")
        name, cores, _ = _KINDS[self.kind]
        several = {'num_slices': self.slices} if self.slices > 1 else {}
        return list(topologies.get_topology_desc(
            platform='tpu', topology_name=f'{name}:{"x".join(map(str, self.shape))}', chip_config_name=cores,
            wrap=self.wrap, **several).devices)


def names() -> list[str]:
    return [f'{kind}-{size}' for kind, (_, _, shapes) in _KINDS.items() for size in shapes]


def pod(name: str) -> Pod:
    """Raises UserError for a name that is not in the table."""
    match = re.fullmatch(r'(?:([1-9]\d{0,2})x\s*)?(\w+)-(\d{1,6})', name, re.ASCII)
    slices, kind, size = match.groups() if match else (None, '', '')
    if kind not in _KINDS:
        raise UserError(f'--pod={name} is not known{nearest(f"{kind}-{size}" if match else name, names())}')
    if int(size) not in _KINDS[kind][2]:
        close = min(_KINDS[kind][2], key=lambda known: abs(known - int(size)))
        raise UserError(f'--pod={name} is not known; did you mean {kind}-{close}?')
    return Pod(name, kind, tuple(map(int, _KINDS[kind][2][int(size)].split('x'))), int(slices or 1))
