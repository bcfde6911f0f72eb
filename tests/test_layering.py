"""The floors of the house: what each part of llm/ may import, read from the source.

A new file must be given a floor here; the standard library and a package's own folder are always allowed.
"""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EVERYTHING = {'*'}
DOOR = {'llm.architecture', 'llm.config', 'llm.door', 'llm.errors', 'llm.execution',
        'llm.identity'}  # configs and what is said of them

# A file or folder -> what it may import. The longest name that fits counts.
FLOORS = {
    'configs': {'ml_collections'},
    'llm/architecture.py': {'llm.errors'},
    'llm/config.py': {'llm.architecture', 'llm.door', 'llm.errors', 'llm.execution'},
    'llm/execution.py': {'llm.errors'},
    'llm/door.py': {'llm.errors'},
    'llm/errors.py': set(),
    'llm/identity.py': {'llm.config'},
    'llm/sharding.py': {'flax', 'jax', 'numpy', *DOOR},
    'llm/data': {'array_record', 'datasketch', 'etils', 'grain', 'numpy', 'py3langid', 'scipy', 'sentencepiece',
                 'tensorflow_datasets', 'tokenizers', 'vaderSentiment', 'yaml', *DOOR},
    'llm/model': {'flax', 'jax', *DOOR, 'llm.sharding'},
    'llm/processes.py': {'jax', 'numpy', 'llm.errors'},
    'llm/objectives': {'jax', 'optax'},
    'llm/rollout': {'jax', *DOOR, 'llm.model', 'llm.sharding'},
    'llm/rollout/packing.py': {'flax', 'jax', 'numpy', *DOOR, 'llm.model', 'llm.sharding'},
    'llm/envs': {'jax', *DOOR, 'llm.model', 'llm.rollout.packing', 'llm.sharding'},
    'llm/optim.py': {'jax', 'optax', *DOOR},
    'llm/train_state.py': {'flax', 'jax', 'optax', 'llm.sharding'},
    'llm/train_step.py': {'jax', 'optax', 'llm.objectives.loss', 'llm.sharding', 'llm.train_state'},
    'llm/loop.py': {'jax', 'numpy', 'llm.sharding', 'llm.train_state'},
    'llm/checkpoint.py': {'etils', 'jax', 'numpy', 'orbax', *DOOR, 'llm.checkpoint_errors', 'llm.fingerprint',
                          'llm.manifest', 'llm.processes'},
    'llm/checkpoint_errors.py': {'etils', 'jax', *DOOR, 'llm.manifest'},
    'llm/fingerprint.py': {'jax', 'numpy', *DOOR},
    'llm/guard.py': {'etils', 'jax', *DOOR},
    'llm/manifest.py': {'etils', *DOOR},
    'llm/chips.py': set(),
    'llm/metrics.py': {'rich', 'tensorboard', 'llm.chips'},
    'llm/ngrams.py': {'numpy'},
    'llm/owner.py': {'psutil', *DOOR},
    'llm/host_memory.py': set(),
    'llm/phases.py': {'jax'},
    'llm/provenance.py': set(),
    'llm/report': {'jinja2', 'matplotlib', *DOOR, 'llm.manifest', 'llm.phases'},
    # Files and facts; what meets the mesh and a run is named below.
    'llm/interop': {'numpy', *DOOR, 'llm.data.json_file'},
    'llm/interop/gguf.py': {'gguf', 'numpy', *DOOR, 'llm.data.json_file', 'llm.interop'},
    'llm/interop/plan.py': {'jax', 'numpy', *DOOR, 'llm.interop'},
    'llm/interop/stream.py': {'jax', 'numpy', 'llm.interop'},
    'llm/interop/targets.py': {'flax', 'jax', 'numpy', *DOOR, 'llm.fingerprint', 'llm.model', 'llm.sharding',
                               'llm.train_state'},
    'llm/plan/hlo.py': {'llm.plan.hlo_text'},
    'llm/plan/hlo_text.py': set(),
    'llm/plan/pods.py': {'jax', 'llm.chips', *DOOR},
    'llm/yardsticks.py': {'numpy', 'scipy', 'sklearn', 'vaderSentiment'},
    # What puts the parts above together.
    **dict.fromkeys(('llm/evaluate.py', 'llm/figures.py', 'llm/interop/export_hf.py',
                     'llm/interop/import_hf.py', 'llm/journal.py', 'llm/judges.py', 'llm/main.py',
                     'llm/pairs.py', 'llm/pipeline.py', 'llm/plan', 'llm/programs.py', 'llm/resolve.py', 'llm/run.py',
                     'llm/stages'), EVERYTHING),
}
# Import -> the only files that may have it, on whatever floor they are.
KEEPERS = {
    'orbax': {'llm/checkpoint.py'},
    'llm.stages': {'llm/pipeline.py', 'llm/stages'},
    'sentencepiece': {'llm/data/codecs.py', 'llm/data/shared.py', 'llm/data/tokenizer.py'},
    'tokenizers': {'llm/data/codecs.py'},
    'jinja2': {'llm/report'},
    'matplotlib': {'llm/report'},
    'llm.main': {'llm/interop/export_hf.py', 'llm/interop/import_hf.py'},  # commands of their own
}


def imports(source: str) -> set[str]:
    """Dotted names of everything that a module imports, wherever in it; `from a import b` counts as `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'relative import; write it in full'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return {name for name in names if name.split('.')[0] not in sys.stdlib_module_names}


def within(name: str, parents: set[str], separator: str) -> bool:
    return any(name == parent or name.startswith(parent + separator) for parent in parents)


def violations(path: str, source: str) -> list[str]:
    """One line for each import in that file which its floor or a keeper forbids."""
    floor = max((floor for floor in FLOORS if within(path, {floor}, '/')), key=len, default=None)
    if floor is None:
        return [f'{path} has no floor; give it one in FLOORS']
    own = {floor.replace('/', '.')}
    found = []
    for name in sorted(imports(source)):
        if FLOORS[floor] is not EVERYTHING and not within(name, FLOORS[floor] | own, '.'):
            found.append(f'{path} imports {name}, which {floor} may not')
        for kept, keepers in KEEPERS.items():
            if within(name, {kept}, '.') and not within(path, keepers, '/'):
                found.append(f'{path} imports {name}, which only {sorted(keepers)} may')
    return found


def files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for top in ('llm', 'configs')
                  for path in (ROOT / top).rglob('*.py'))


@pytest.mark.parametrize('path', files())
def test_imports_stay_on_their_floor(path):
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize('floor', FLOORS)
def test_every_floor_exists(floor):
    assert (ROOT / floor).exists()


@pytest.mark.parametrize('path, line', [
    ('llm/data/rows.py', 'import jax.numpy as jnp'),
    ('llm/objectives/ppo.py', 'from llm import config'),
    ('llm/objectives/ppo.py', 'def f():\n    from llm.model import layers'),
    ('llm/model/layers.py', 'import llm.objectives.loss'),
    ('llm/loop.py', 'from llm.objectives.ppo import gae'),
    ('llm/evaluate.py', 'import orbax.checkpoint as ocp'),
    ('llm/evaluate.py', 'from llm.stages import ppo'),
    ('llm/provenance.py', 'import jax'),
    ('llm/stages/sft.py', 'import sentencepiece'),
    ('llm/data/rows.py', 'import sentencepiece'),
    ('llm/data/foreign.py', 'import tokenizers'),
    ('llm/envs/preference.py', 'from llm.rollout import generate'),
    ('llm/errors.py', 'from llm.config import StageConfig'),
    ('llm/door.py', 'from llm.config import StageConfig'),
    ('llm/config.py', 'from llm.identity import digest'),
    ('configs/sft.py', 'from llm.config import ModelConfig'),
    ('configs/sft.py', 'import numpy'),
])
def test_forbidden_import_is_found(path, line):
    assert len(violations(path, line)) == 1


@pytest.mark.parametrize('path', ['llm/new.py', 'llm/new/part.py', 'new/part.py'])
def test_file_without_a_floor_is_found(path):
    assert violations(path, 'import json') == [f'{path} has no floor; give it one in FLOORS']


@pytest.mark.parametrize('path, line', [
    ('llm/data/rows.py', 'import json\nfrom llm.errors import UserError\nfrom llm.data import order'),
    ('llm/train_step.py', 'from llm.objectives.loss import Loss'),
    ('llm/checkpoint.py', 'import orbax.checkpoint as ocp'),
    ('llm/pipeline.py', 'from llm.stages import ppo'),
    ('configs/sft.py', 'from configs import base'),
])
def test_allowed_import_is_not(path, line):
    assert violations(path, line) == []
