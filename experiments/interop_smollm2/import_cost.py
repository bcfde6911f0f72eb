"""What an import costs: python -m experiments.interop_smollm2.import_cost SOURCE WORKDIR

In: a source as `llm.interop.import_hf` takes it, or the name of a tied Llama in configs/sizes.py, of which a file of
random bfloat16 numbers is written first, into WORKDIR. Out: one line: seconds, and memory.
On a CPU the parameters lie in the host's memory too. So what the import needs beside them is the peak of the process
less what it had before and less the parameters: that is what is asked to stay below the largest tensor plus 1 GiB.
"""

from collections.abc import Iterator
import json
import math
import pathlib
import resource
import sys
import time

from etils import epath
import jax
import numpy as np
import psutil

from configs import sizes
from llm.architecture import ModelConfig
from llm.data import foreign
from llm.door import from_dict
from llm.interop import config_json, import_hf, safetensors
from llm.interop.import_hf import make_plan, open_source

GIB = 2**30


def main(source: str, workdir: pathlib.Path) -> None:
    if hasattr(sizes, source):
        source = written(source, workdir / source)
    opened = open_source(source)
    plan = make_plan(opened, (1, 1, 1))
    parameters = sum(math.prod(leaf.target.shape) for leaf in plan.leaves) * 4
    largest = max(math.prod(tensor.shape) for tensor in opened.tensors.values()) * 4
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(8)))
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    import_hf.import_model(source, str(workdir), mesh=(1, 1, 1), say=print, progress=lambda what, done, total: None)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f'{seconds:.1f} s; GiB: parameters {parameters / GIB:.2f}, largest tensor {largest / GIB:.2f}, '
          f'process before {before / GIB:.2f}, peak {peak / GIB:.2f}, '
          f'beside the parameters {(peak - before - parameters) / GIB:.2f}')


def written(size: str, folder: pathlib.Path) -> str:
    """A Llama of this size as released ones are stored: random numbers in bfloat16; the tokenizer is that of
    WORKDIR/exported, which any such table has rows for."""
    model = from_dict(ModelConfig, getattr(sizes, size)().to_dict())
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(config_json.encode(model, 'llama', 'token', dtype='bfloat16')))
    width, mlp, keys = model.model_dim, model.mlp_dim, model.num_kv_heads * model.head_dim
    shapes = {'model.embed_tokens.weight': (model.vocab_size, width), 'model.norm.weight': (width,)}
    for layer in range(model.num_layers):
        for name, shape in (('self_attn.q_proj', (width, width)), ('self_attn.k_proj', (keys, width)),
                            ('self_attn.v_proj', (keys, width)), ('self_attn.o_proj', (width, width)),
                            ('mlp.gate_proj', (mlp, width)), ('mlp.up_proj', (mlp, width)),
                            ('mlp.down_proj', (width, mlp)), ('input_layernorm', (width,)),
                            ('post_attention_layernorm', (width,))):
            shapes[f'model.layers.{layer}.{name}.weight'] = shape
    draw = np.random.default_rng(0)

    def numbers(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        return (draw.standard_normal(shape[1:], np.float32) for _ in range(shape[0]))
    safetensors.write_file(folder / safetensors.SINGLE, {
        name: (shape, 'BF16', numbers(shape)) for name, shape in shapes.items()})
    foreign.save(foreign.gather(epath.Path(folder.parent / 'exported')), epath.Path(folder))
    return str(folder)


if __name__ == '__main__':
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
