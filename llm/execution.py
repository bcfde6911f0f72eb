"""How the weights of a model are run: over which mesh, by which rules, kernels and dtype, with what recomputation.

In: the keys of `exec` in a config. Out: `ExecConfig`, a part of every stage's config.
Left out: what the weights mean (`architecture.py`), making the mesh (`sharding.py`).
"""

import dataclasses

from llm.errors import at_least, one_of

SPLASH_BLOCK = 128  # tokens of a row that the attention kernel takes at once, at least


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (at most once) takes what is left."""

    data: int
    fsdp: int
    tensor: int
    context: int = 1


@dataclasses.dataclass(frozen=True)
class ExecConfig:
    """How the weights are run. Changes nothing that a checkpoint says, except through `compute_dtype`."""

    mesh: MeshConfig
    rules: dict[str, tuple[str, ...]]  # logical axis -> mesh axes
    compute_dtype: str  # 'float32' | 'bfloat16'
    remat: str  # 'none' | 'minimal' | 'qkv' | 'full' | 'offload'
    scan_unroll: int
    micro_batches: int
    attention: str = 'einsum'  # 'einsum' | 'splash'
    logits_chunk_vocab: int = 8192

    def __post_init__(self):
        one_of('exec.compute_dtype', self.compute_dtype, ('float32', 'bfloat16'))
        one_of('exec.remat', self.remat, ('none', 'minimal', 'qkv', 'full', 'offload'))
        one_of('exec.attention', self.attention, ('einsum', 'splash'))
        at_least(1, self, 'logits_chunk_vocab', 'micro_batches', section='exec.')
        at_least(0, self, 'scan_unroll', section='exec.')

    def unrolls(self, num_layers: int) -> bool:
        """Whether the scan over so many layers is no loop."""
        return not 0 < self.scan_unroll < num_layers
