"""A reward model with TRL: pairs of answers, padded to the longest of the batch.

In: a job of stage reward; `lengths`, if answers differ. Out: pairs a second.
"""

from typing import Any

import trl

from tools.bench import draws
from tools.bench.peers.torch_models import scorer
from tools.bench.peers.trl_steps import dataset, Gate, leave_no_cache, shared, STEPS, timed_steps, tokenizer
from tools.bench.serve import serve, Work

PAIRS = 512


def make(job: dict[str, Any]) -> Work:
    leave_no_cache()
    config, vocab = job['config'], job['model']['vocab_size']
    sizes = draws.lengths(2 * PAIRS, *job['lengths'], job['seed']) if 'lengths' in job else (
        [config['seq_len']] * 2 * PAIRS)
    answers = draws.tokens(sizes, vocab, job['seed'])
    gate = Gate()
    trainer = trl.RewardTrainer(
        scorer(job['model']), trl.RewardConfig(**shared(job), per_device_train_batch_size=config['batch_size'],
                                               max_length=config['seq_len'], max_steps=STEPS),
        train_dataset=dataset(chosen_ids=answers[::2], rejected_ids=answers[1::2]),
        processing_class=tokenizer(vocab), callbacks=[gate])
    return Work(timed_steps(trainer, gate, job['updates'], 'pairs', lambda batch: len(batch['input_ids']) / 2))


if __name__ == '__main__':
    serve(make, ('torch', 'transformers', 'trl'))
