"""SmolLM2 here and in transformers: python -m experiments.interop_smollm2.speed RUN FOLDER PYTHON

In: an imported run; the folder of its export; the interpreter of an environment with torch and transformers.
Out: a line for each batch: prefill and decode, tokens a second of both, and their ratio with its spread.
Both are float32, greedy, with a cache, and take turns in one run: what else the machine does hits both. The first turn
of each compiles and is not counted. Prefill: the prompt's tokens over the time of an answer of one token. Decode: the
other tokens of an answer over the time that they add.
"""

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from llm.pipeline import open_step
from llm.model.transformer import Transformer
from llm.rollout.generate import make_generate

PROMPT, ANSWER, TURNS = 256, 65, 7
BATCHES = (1, 8)


def main(reference: str, folder: str, python: str) -> None:
    run, _, params = open_step(reference, say=lambda line: None, progress=lambda what, done, total: None)
    model = Transformer(run.model_config, run.config.exec)
    with subprocess.Popen([python, '-m', 'tests.parity.reference.speed', folder], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as theirs, jax.set_mesh(run.mesh):
        for batch in BATCHES:
            tokens_BT = np.random.default_rng(0).integers(100, run.model_config.vocab_size, (batch, PROMPT))
            turns = {(who, length): [] for who in ('quartet', 'transformers') for length in (1, ANSWER)}
            generate = {length: jax.jit(make_generate(model, max_new_tokens=length, temperature=0.0, eos_id=-1,
                                                      pad_id=0)) for length in (1, ANSWER)}
            for turn in range(TURNS + 1):
                for length in (1, ANSWER):
                    began = time.perf_counter()
                    done = generate[length](params, jnp.asarray(tokens_BT), jnp.full(batch, PROMPT), jnp.arange(batch),
                                            jax.random.key(0))
                    ours = np.asarray(done.tokens_BT)[:, PROMPT:].tolist()
                    turns['quartet', length].append(time.perf_counter() - began)
                    print(json.dumps([tokens_BT.tolist(), length]), file=theirs.stdin, flush=True)
                    seconds, answer = json.loads(theirs.stdout.readline())
                    turns['transformers', length].append(seconds)
                    assert answer == ours, 'the two do not say the same'
            report(batch, {key: np.array(seconds[1:]) for key, seconds in turns.items()})


def report(batch: int, turns: dict[tuple[str, int], np.ndarray]) -> None:
    rates = {who: (batch * PROMPT / turns[who, 1], batch * (ANSWER - 1) / (turns[who, ANSWER] - turns[who, 1]))
             for who in ('quartet', 'transformers')}
    for index, what in enumerate(('prefill', 'decode')):
        ours, theirs = rates['quartet'][index], rates['transformers'][index]
        ratio = np.sort(ours / theirs)
        print(f'batch {batch}  {what}  quartet {np.median(ours):,.0f}  transformers {np.median(theirs):,.0f} tokens/s  '
              f'ratio {np.median(ratio):.2f} ({ratio[0]:.2f} to {ratio[-1]:.2f} over {TURNS} turns)', flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
