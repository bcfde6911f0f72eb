"""python -m llm.interop.export_hf RUN[@STEP] --to=FOLDER: a step of any run as a folder that transformers loads.

In: a run's folder, its step (else the one it chose). Out: FOLDER with config.json, safetensors in shards of a given
size, tokenizer files, chat template: a policy as a causal language model, a reward model as a sequence classifier with
one label, an encoder as its head's class. Importing it gives the same bits.
Left out: buckets, several processes: the weights are gathered tensor by tensor to this one.
"""

import argparse
from collections.abc import Callable, Iterator
import json
import math
import os
import pathlib
import sys
from typing import Any, NamedTuple

from etils import epath
import jax
import numpy as np

from configs import base
from llm import metrics
from llm.architecture import ModelConfig
from llm.checkpoint import load_params
from llm.data import foreign, shared
from llm.data.tokenizer import FOREIGN, OWN, Tokenizer
from llm.door import from_dict
from llm.errors import UserError
from llm.execution import ExecConfig, MeshConfig
from llm.fingerprint import flatten
from llm.interop import config_json, layout, plan as planning, safetensors
from llm.interop.families import FAMILIES
from llm.interop.family import Family, Tensor
from llm.interop.targets import nested, targets
from llm.main import guarded
from llm.manifest import lineage, Manifest, parse_reference
from llm.manifest import read as read_manifest
from llm.resolve import chosen_step
from llm.sharding import make_mesh

_BARE = ('none', 'pooled')  # heads of bare models, whose names have no prefix
_DTYPES = {'float32': ('F32', 4), 'bfloat16': ('BF16', 2)}


class _Tensor(NamedTuple):
    """One tensor of the files to be: its leaf, or its leaves where they are fused, and maybe a layer of them."""

    name: str
    rows: tuple[Tensor, ...]
    layer: int | None
    shape: tuple[int, ...]


def export(reference: str, to: str, *, max_shard_gib: float = 5.0, dtype: str = 'float32',
           say: Callable[[str], None]) -> pathlib.Path:
    """Writes the folder, which must not be there or be empty; returns it."""
    target = pathlib.Path(to).expanduser()
    if jax.process_count() > 1:
        raise UserError('export_hf runs in one process; start it on one host')
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f'--to={to} is there and not empty; name a new folder')
    if not 0 < max_shard_gib < math.inf:
        raise UserError(f'--max_shard_gib={max_shard_gib} is not a positive number; use e.g. 5')
    partial = target.parent / f'{target.name}.partial'
    if partial.exists():  # its files would be among ours
        raise UserError(f'{partial} is left over from an export that was stopped; remove it')
    folder, manifest = _find(reference)
    model = from_dict(ModelConfig, manifest.model, 'manifest.model.')
    head = manifest.heads[0]
    model_type = _model_type(folder, manifest, model, head)
    files = _tokenizer_files(folder, manifest) if manifest.tokenizer else {}
    special = {name: manifest.tokenizer['special_ids'][name] for name in ('pad', 'bos', 'eos')} if files else {}
    if files and head == 'scalar':  # transformers reads the last token that is not pad, we read the end of the answer
        files, special['pad'] = foreign.with_pad_of_its_own(files, str(folder))
    leaves = _load(folder, manifest, model, head)
    partial.mkdir(parents=True)
    keys = config_json.encode(model, model_type, head, special_ids=special, dtype=dtype)
    if head == 'scalar' and manifest.reward:
        keys['quartet_reward'] = {name: float(manifest.reward[name]) for name in ('mean', 'deviation')}
    _write_json(partial / 'config.json', keys)
    if head == 'token' and special:
        _write_json(partial / 'generation_config.json', {f'{name}_token_id': index for name, index in special.items()})
    for name, content in files.items():
        (partial / name).write_bytes(content)
    tensors = _tensors(FAMILIES[model_type], head, leaves)
    count = _write_shards(partial, tensors, leaves, int(max_shard_gib * 2**30), dtype)
    if target.exists():
        target.rmdir()
    partial.rename(target)
    say(f'export  {keys["architectures"][0]}, {len(tensors)} tensors in {count} files  {target}')
    return target


def _find(reference: str) -> tuple[epath.Path, Manifest]:
    path, step = parse_reference(reference, 'RUN')
    folder = epath.Path(os.path.abspath(path) if '://' not in path else path)
    step = chosen_step(folder, f'RUN={reference}') if step is None else step
    return folder, read_manifest(folder / 'checkpoints', step)


def _tokenizer_files(folder: epath.Path, manifest: Manifest) -> dict[str, bytes]:
    """Of a foreign tokenizer its own files; of ours what says the same to transformers."""
    said, found = manifest.tokenizer['sha256'], Tokenizer.from_folder(folder).sha256
    if found != said:
        raise UserError(f'{folder}: its tokenizer has SHA-256 {found[:8]}, the step was trained with {said[:8]}; '
                        f'restore the tokenizer of that run')
    if (folder / FOREIGN).is_dir():
        return foreign.gather(folder / FOREIGN)
    return shared.files((folder / OWN).read_bytes(), manifest.tokenizer['special_ids'])


def _model_type(folder: epath.Path, manifest: Manifest, model: ModelConfig, head: str) -> str:
    """That of the checkpoint that the run's weights came from, where it can say this model; else one that can."""
    for _, _, ancestor in lineage(folder / 'checkpoints', manifest.step):
        said = ancestor.data.get('imported', {}).get('model_type') if ancestor else None
        if said in FAMILIES and config_json.says(model, said, head):
            return said
    return config_json.family_of(model, head)


def _load(folder: epath.Path, manifest: Manifest, model: ModelConfig, head: str) -> dict[str, jax.Array]:
    """Path -> leaf, on all devices; of PPO's policy and value function, the policy."""
    exec_config = from_dict(ExecConfig, base.execution().to_dict())
    shapes = targets(model, head, exec_config, _mesh(model, head, exec_config))
    saved = manifest.leaves['ema' if 'ema' in manifest.leaves else 'params']
    inside = 'policy/' if any(path.startswith('policy/') for path in saved) else ''
    tree = load_params(folder / 'checkpoints', manifest.step,
                       nested({inside + path: shape for path, shape in shapes.items()}))[0]
    return {path.removeprefix(inside): leaf for path, leaf in flatten(tree).items()}


def _mesh(model: ModelConfig, head: str, exec_config: ExecConfig) -> jax.sharding.Mesh:
    """All devices along fsdp, or one where they do not divide the model."""
    try:
        mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
        targets(model, head, exec_config, mesh)
        return mesh
    except UserError:
        return make_mesh(MeshConfig(1, 1, 1))


def _tensors(family: Family, head: str, leaves: dict[str, jax.Array]) -> list[_Tensor]:
    """Every tensor of the files, in the family's order, layer by layer."""
    bare = head in _BARE
    by_name: dict[str, list[Tensor]] = {}
    for row in planning.rows(family, head).values():
        if row.path in leaves:
            by_name.setdefault(row.name.removeprefix(family.prefix) if bare else row.name, []).append(row)
    found = []
    for name, rows in by_name.items():
        leaf, stacked = leaves[rows[0].path], rows[0].path.startswith('layers/')
        shape = layout.their_shape(rows[0].layout, leaf.shape[1:] if stacked else leaf.shape, rows[0].of)
        assert len(rows) == rows[0].of, (name, rows)
        found += [_Tensor(name.replace('{layer}', str(layer)), tuple(rows), layer, shape)
                  for layer in (range(leaf.shape[0]) if stacked else [None])]
    return sorted(found, key=lambda tensor: -1 if tensor.layer is None else tensor.layer)


def _numbers(tensor: _Tensor, leaves: dict[str, jax.Array]) -> Iterator[np.ndarray]:
    """The whole tensor, gathered to this host: one at a time."""
    whole = None
    for row in tensor.rows:
        leaf = leaves[row.path]
        ours = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
        theirs = layout.to_theirs(ours, row.layout)
        if row.of == 1:
            yield theirs.reshape(tensor.shape)
            return
        whole = np.empty(tensor.shape, np.float32) if whole is None else whole
        box = layout.region(row.layout, ours.shape, (slice(None),) * ours.ndim, row.part, row.of)
        whole[box] = theirs.reshape(whole[box].shape)
    yield whole


def _write_shards(folder: pathlib.Path, tensors: list[_Tensor], leaves: dict[str, jax.Array], limit: int,
                  dtype: str) -> int:
    """The number of files; a tensor larger than `limit` bytes has one of its own."""
    code, size = _DTYPES[dtype]
    shards: list[list[_Tensor]] = [[]]
    room = limit
    for tensor in tensors:
        need = math.prod(tensor.shape) * size
        if need > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= need
    names = [safetensors.SINGLE] if len(shards) == 1 else [
        f'model-{number:05d}-of-{len(shards):05d}.safetensors' for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        safetensors.write_file(folder / name, {
            tensor.name: (tensor.shape, code, _numbers(tensor, leaves)) for tensor in shard})
    if len(shards) > 1:
        _write_json(folder / safetensors.INDEX, {
            'metadata': {'total_size': sum(math.prod(tensor.shape) * size for tensor in tensors)},
            'weight_map': {tensor.name: name for name, shard in zip(names, shards) for tensor in shard}})
    return len(shards)


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('run', help="a run's folder, e.g. runs/quickstart/sft-1234abcd@100")
    parser.add_argument('--to', required=True, help='the folder to write')
    parser.add_argument('--max_shard_gib', type=float, default=5.0, help='of one file of weights')
    parser.add_argument('--dtype', choices=tuple(_DTYPES), default='float32',
                        help='of the weights; bfloat16 rounds what is trained in float32')
    flags = parser.parse_args()
    export(flags.run, flags.to, max_shard_gib=flags.max_shard_gib, dtype=flags.dtype, say=metrics.say)


if __name__ == '__main__':
    sys.exit(guarded(main))
