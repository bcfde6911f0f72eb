"""Models that are born here, as sealed runs with a tokenizer of ours: what an export starts from.

In: a model config, a head, a tokenizer. Out: drawn parameters; the folder of a run with a sealed step 0.
"""

import pathlib
import random
from typing import Any

from etils import epath
from flax import linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from llm.architecture import ModelConfig
from llm.checkpoint import Checkpoints
from llm.data import foreign, shared, tokenizer as tokenizers
from llm.execution import MeshConfig
from llm.manifest import Manifest
from llm.model.make import make_model
from llm.sharding import make_mesh
from tests import tiny
from tests.model import models


def train_tokenizer(path: pathlib.Path) -> None:
    """Of 320 tokens, bytes among them."""
    draw = random.Random(0)
    texts = [' '.join(draw.choices(tiny.WORDS, k=12)) for _ in range(200)]
    tokenizers.train(texts, vocab_size=320, train_bytes=10**6, path=str(path))


def drawn(config: ModelConfig, head: str) -> tuple[nn.Module, Any]:
    """A module, and parameters large enough that each matters."""
    model = make_model(config, tiny.execution(scan_unroll=1), head)
    return model, models.init(model)


def sealed(folder: pathlib.Path, config: ModelConfig, head: str, tokenizer: pathlib.Path, *,
           pads_with_end: bool = False) -> pathlib.Path:
    """A run with drawn parameters in its step 0, and this tokenizer of ours; or as other people's that pad so."""
    folder.mkdir(parents=True)
    _, params = drawn(config, head)
    if pads_with_end:
        ids = tokenizers.Tokenizer.from_file(str(tokenizer)).special_ids
        foreign.save(shared.files(tokenizer.read_bytes(), {**ids, 'pad': ids['eos']}),
                     epath.Path(folder) / tokenizers.FOREIGN)
    else:
        tokenizers.install(str(tokenizer), epath.Path(folder))
    mesh = make_mesh(MeshConfig(1, 1, 1))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    manifest = Manifest(
        stage='sft', identity='0' * 64, model=config.stored(),
        tokenizer=tokenizers.Tokenizer.from_folder(folder).describe(), heads=[head],
        reward={'mean': 0.5, 'deviation': 2.0} if head == 'scalar' else None, objective='none', data={}, seed=0,
        mesh=dict(mesh.shape), packages={}, git_commit='', parents={})
    with jax.set_mesh(mesh), Checkpoints(folder / 'checkpoints', keep=2, say=_refused) as checkpoints:
        checkpoints.save(0, {'params': params}, {}, manifest)
    return folder


def _refused(line: str) -> None:
    raise AssertionError(line)
