"""python -m llm.interop.import_hf SOURCE --workdir=DIR: other people's checkpoints, as a run that stages start from.

In: a folder with config.json, safetensors and tokenizer files, or a .gguf file of a Llama-architecture model.
Out: DIR/imported-<hash8>, named by the SHA-256 of the files, with a sealed step 0, its manifest and its tokenizer;
`--config.init_from=DIR/imported-<hash8>` starts a stage from it. With --plan: what that would take, and nothing else.
The host's memory (`plan.summary`) is small while tensors are read; to save, it must hold its largest stacked leaf.
Left out: several processes; what is refused, and why (`config_json.py`, `safetensors.py`, `gguf.py`, `plan.py`,
`llm/data/foreign.py`).
"""

import argparse
from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

from etils import epath
import jax
from ml_collections import ConfigDict

from configs import base
from llm import metrics
from llm import provenance
from llm.architecture import ModelConfig
from llm.checkpoint import Checkpoints
from llm.config import stage_config
from llm.data import converted, foreign, json_file
from llm.data.tokenizer import FOREIGN, Tokenizer
from llm.door import from_dict
from llm.errors import UserError
from llm.execution import ExecConfig
from llm.identity import digest
from llm.interop import config_json, gguf, plan as planning, safetensors, stream
from llm.interop.decoders import GGUF_LLAMA
from llm.interop.families import FAMILIES
from llm.interop.family import Family
from llm.interop.targets import nested, targets
from llm.main import guarded
from llm.manifest import Manifest, sealed_steps
from llm.owner import Owner
from llm.run import Result, write_json
from llm.sharding import make_mesh

READ_BYTES = 16 * 2**20  # of a file at a time, for its hash


class Opened(NamedTuple):
    """A checkpoint of somebody else's, its headers checked and none of its numbers read."""

    path: pathlib.Path
    described: config_json.Described
    family: Family
    tensors: Mapping[str, planning.Source]
    files: list[pathlib.Path]  # that make the model
    metadata: dict[str, Any]  # of a GGUF file
    reward: dict[str, float] | None = None  # mean and deviation of a scorer's scores


def open_source(source: str) -> Opened:
    """Raises UserError, one line, for whatever is not as it should be."""
    path = pathlib.Path(source).expanduser()
    safetensors.refuse_pickle(path)
    if not path.exists():
        raise UserError(f'SOURCE={source} is not there; name a folder with config.json, or a .gguf file')
    if path.is_dir():
        return _open_folder(path)
    if path.suffix.lower() != '.gguf':
        raise UserError(f'SOURCE={source} is a file; name the folder with config.json that it lies in, or a .gguf file')
    contents = gguf.open_file(path)
    described = config_json.decode(gguf.config_keys(contents, source), source)
    return Opened(path, described, GGUF_LLAMA, contents.tensors, [path], contents.metadata)


def _open_folder(folder: pathlib.Path) -> Opened:
    keys = json_file.read(folder / 'config.json')
    described = config_json.decode(keys, str(folder / 'config.json'))
    tensors = safetensors.open_folder(folder)
    reward = keys.get('quartet_reward', {'mean': 0.0, 'deviation': 1.0}) if described.head == 'scalar' else None
    if reward is not None and (not isinstance(reward, dict) or reward.keys() != {'mean', 'deviation'} or not all(
            type(value) is float and abs(value) < 1e30 for value in reward.values()) or reward['deviation'] <= 0):
        raise UserError(f'{folder / "config.json"}: quartet_reward={reward!r:.60} is not a mean and a positive '
                        f'deviation; mend it or take it out')
    index = folder / safetensors.INDEX
    files = [folder / 'config.json', *([index] if index.exists() else []),
             *sorted({tensor.file for tensor in tensors.values()})]
    return Opened(folder, described, FAMILIES[described.model_type], tensors, files, {}, reward)


def tokenizer_files(opened: Opened, chat_template: str | None) -> dict[str, bytes]:
    """The files that a run keeps of the source's tokenizer; none for images. Raises UserError where text has none."""
    if opened.described.model.kind == 'vision':
        return {}
    files = converted.from_gguf(opened.metadata, str(opened.path)) if opened.metadata else foreign.gather(
        epath.Path(opened.path))
    return foreign.with_chat_template(files, chat_template) if chat_template else files


def _tokenizer_sources(opened: Opened) -> list[pathlib.Path]:
    """The files that `tokenizer_files` reads, but for the model's own."""
    if opened.described.model.kind == 'vision' or opened.metadata:
        return []
    return [pathlib.Path(path) for path in foreign.sources(epath.Path(opened.path))]


def make_plan(opened: Opened, mesh: tuple[int, int, int]) -> planning.Plan:
    """Where every tensor goes on a mesh; raises UserError where the two do not fit."""
    model, head, exec_config = opened.described.model, opened.described.head, _exec(mesh)
    leaves = targets(model, head, exec_config, make_mesh(exec_config.mesh))
    return planning.make(opened.family, head, opened.tensors, leaves, tied=model.tie_embeddings,
                         where=str(opened.path))


def read_model(source: str, mesh: tuple[int, int, int] = (1, -1, 1)) -> tuple[config_json.Described, dict[str, Any]]:
    """(what it is, its parameters on the mesh), without a run: for whoever only looks at a model."""
    opened = open_source(source)
    leaves = stream.load(make_plan(opened, mesh), opened.tensors, lambda done, total: None)
    return opened.described, nested(leaves)


def _exec(mesh: tuple[int, int, int]) -> ExecConfig:
    config = base.execution()
    config.mesh = dict(zip(('data', 'fsdp', 'tensor'), mesh))
    return from_dict(ExecConfig, config.to_dict())


def _run_config(model: ModelConfig, mesh: tuple[int, int, int]) -> dict[str, Any]:
    """The config of an imported run, for tools that open it: a pretraining stage's defaults with this model."""
    config = base.pretrain(ConfigDict(dataclasses.asdict(model)))
    config.exec.mesh = dict(zip(('data', 'fsdp', 'tensor'), mesh))
    config.seq_len = min(config.seq_len, model.max_positions)
    return dataclasses.asdict(stage_config(config))


def import_model(source: str, workdir: str, *, mesh: tuple[int, int, int] = (1, -1, 1),
                 chat_template: str | None = None, say: Callable[[str], None],
                 progress: Callable[[str, int, int], None]) -> epath.Path:
    """Imports, unless the same files were imported before; returns the run's folder."""
    began = time.monotonic()
    if jax.process_count() > 1:
        raise UserError('import_hf runs in one process; start it on one host')
    opened = open_source(source)
    plan = make_plan(opened, mesh)
    files = tokenizer_files(opened, chat_template)
    tokenizer = Tokenizer.from_files(files, source) if files else None
    if tokenizer and tokenizer.vocab_size > opened.described.model.vocab_size:
        raise UserError(f'{source}: the tokenizer has {tokenizer.vocab_size} tokens and the model rows for '
                        f'{opened.described.model.vocab_size}; use the tokenizer that it was trained with')
    for name in plan.left_out:
        say(f'import  left out, no part of {opened.described.head!r}: {name}')
    if tokenizer and tokenizer.chat_template.startswith('unknown-'):
        say(f'import  chat template {tokenizer.chat_template} is not known: chats will be refused; import with '
            f'--chat_template=NAME')
    hashes = {path.name: _sha256(path, progress) for path in (*opened.files, *_tokenizer_sources(opened))}
    identity = {'files': hashes, 'tokenizer': tokenizer.sha256 if tokenizer else None}
    folder = epath.Path(os.path.abspath(workdir)) / f'imported-{digest(identity)[:8]}'
    if (folder / 'result.json').exists() and sealed_steps(folder / 'checkpoints'):
        say(f'import  these files were imported before  {folder}')
        return folder
    with Owner(folder):
        if opened.described.head == 'token' and opened.described.model.kind == 'decoder':
            write_json(folder / 'identity.json', {'name': 'imported', 'identity': identity, 'parents': {},
                                                  'config': _run_config(opened.described.model, mesh)})
        if tokenizer:
            foreign.save(files, folder / FOREIGN)
        if not sealed_steps(folder / 'checkpoints'):  # else one was killed between its seal and its result
            with jax.set_mesh(make_mesh(_exec(mesh).mesh)):
                _save(folder, opened, plan, identity, tokenizer, progress)
        write_json(folder / 'result.json', dataclasses.asdict(Result(
            stage='import', step=0, last_step=0, why='imported', metric='none', before=0.0, after=0.0,
            seconds=time.monotonic() - began, code=provenance.code())))
    summary = planning.summary(plan)
    say(f'import  {summary["tensors"]} tensors, {summary["bytes"] / 2**30:.2f} GiB in float32, in '
        f'{time.monotonic() - began:.1f} s  {folder}')
    return folder


def _save(folder: epath.Path, opened: Opened, plan: planning.Plan, identity: dict[str, Any],
          tokenizer: Tokenizer | None, progress: Callable[[str, int, int], None]) -> None:
    """Step 0, sealed."""
    leaves = stream.load(plan, opened.tensors, lambda done, total: progress('import', done, total))
    described = opened.described
    manifest = Manifest(
        stage='import', identity=digest(identity), model=described.model.stored(),
        tokenizer=tokenizer.describe() if tokenizer else {}, heads=[described.head], reward=opened.reward,
        objective='none', data={'imported': {'model_type': described.model_type, 'from': str(opened.path),
                                             'files': identity['files']}},
        seed=0, mesh=dict(next(iter(leaves.values())).sharding.mesh.shape), packages=provenance.packages(),
        git_commit=provenance.git_commit(), parents={})
    refused: list[str] = []
    with Checkpoints(folder / 'checkpoints', keep=2, say=refused.append, host_gb=planning.SAVED_GB) as checkpoints:
        checkpoints.save(0, {'params': nested(leaves)}, {}, manifest)
    if refused:
        raise UserError(f'{opened.path}: {refused[0]}; fetch the model again')


def _sha256(path: pathlib.Path, progress: Callable[[str, int, int], None]) -> str:
    hasher, size = hashlib.sha256(), path.stat().st_size
    with path.open('rb') as file:
        while block := file.read(READ_BYTES):
            hasher.update(block)
            progress(f'hash of {path.name}', file.tell(), size)
    return hasher.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='a folder with config.json and safetensors, or a .gguf file')
    parser.add_argument('--workdir', required=True, help='folder of the runs')
    parser.add_argument('--mesh', default='1,-1,1', help='devices along data, fsdp, tensor; -1 takes what is left')
    parser.add_argument('--chat_template', help='name of the chat format, where the model does not bring a known one')
    parser.add_argument('--plan', action='store_true', help='say what the import would take, and do nothing')
    flags = parser.parse_args()
    mesh = _mesh(flags.mesh)
    if flags.plan:
        opened = open_source(flags.source)
        plan = make_plan(opened, mesh)
        metrics.say('  '.join(f'{key} {value:,}' for key, value in planning.summary(plan).items()))
        return
    import_model(flags.source, flags.workdir, mesh=mesh, chat_template=flags.chat_template, say=metrics.say,
                 progress=metrics.progress)


def _mesh(text: str) -> tuple[int, int, int]:
    sizes = text.split(',')
    if len(sizes) != 3 or not all(size.removeprefix('-').isdecimal() for size in sizes):
        raise UserError(f'--mesh={text} is not three numbers; write e.g. --mesh=1,8,1')
    return tuple(int(size) for size in sizes)


if __name__ == '__main__':
    sys.exit(guarded(main))
