"""How a family's files are described: types, layouts, and the tensors of a linear layer, a norm, a matrix of heads.

In: nothing. Out: `Family`, `Tensor`, and what the tables of `decoders.py` and `encoders.py` are written with.
Left out: the tables.
"""

import dataclasses
from typing import Any, NamedTuple

from llm.interop.layout import AS_IS

LINEAR = 'F D -> D F'  # PyTorch keeps [out, in]
HEADS_OUT = '(N H) D -> D N H'
HEADS_IN = 'D (N H) -> N H D'
HEADS = '(N H) -> N H'


class Tensor(NamedTuple):
    """One tensor of a file, or a part of a fused one, and our leaf of it; leaves under `layers` are stacked."""

    path: str
    name: str  # {layer} stands for the number of the layer
    layout: str = AS_IS
    part: int = 0
    of: int = 1


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` is written.

    keys: of config.json -> our field, of the same value. absent: what a key means where a file leaves it out.
    ours: our fields that are the same in every model of the family. fixed: keys whose value the maths relies on; the
    first is what is written. ignored: keys that change no output. heads: transformers' class -> our head.
    tensors: of the trunk; in all classes but the bare model `prefix` stands before their names. head_tensors: what a
    head adds, by whole names.
    ties: name of a tensor that a tied model may hold twice -> the other name.
    skipped: endings of names that old files hold beside their weights; renamed: endings that old files use.
    """

    keys: dict[str, str]
    ours: dict[str, Any]
    fixed: dict[str, tuple]
    heads: dict[str, str]
    tensors: tuple[Tensor, ...]
    prefix: str
    head_tensors: dict[str, tuple[Tensor, ...]]
    ties: tuple[tuple[str, str], ...] = ()
    absent: dict[str, Any] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    skipped: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


def dense(path: str, name: str, layout: str = LINEAR, bias_layout: str = AS_IS) -> tuple[Tensor, ...]:
    return (Tensor(f'{path}/w', f'{name}.weight', layout), Tensor(f'{path}/bias', f'{name}.bias', bias_layout))


def norm(path: str, name: str) -> tuple[Tensor, ...]:
    return (Tensor(f'{path}/scale', f'{name}.weight'), Tensor(f'{path}/bias', f'{name}.bias'))


def heads(path: str, name: str) -> tuple[Tensor, ...]:
    return dense(path, name, HEADS_OUT, HEADS)
