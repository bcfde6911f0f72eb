"""SFT with TRL: padded, or packed without contamination (its `bfd` packing, rows laid side by side).

In: a job of stage sft with lengths; `packing`. Out: tokens of texts a second, padding not counted. A padded batch has
as many texts as hold about the tokens of a packed one.
"""

from typing import Any

import trl

from tools.bench import draws
from tools.bench.peers.torch_models import language_model
from tools.bench.peers.trl_steps import dataset, Gate, leave_no_cache, shared, STEPS, timed_steps, tokenizer
from tools.bench.serve import serve, Work

TEXTS = 2000


def make(job: dict[str, Any]) -> Work:
    leave_no_cache()
    config, vocab, packing = job['config'], job['model']['vocab_size'], bool(job.get('packing'))
    rows = config['batch_size'] if packing else round(config['batch_size'] * config['seq_len'] / job['lengths'][2])
    texts = draws.tokens(draws.lengths(TEXTS, *job['lengths'], job['seed']), vocab, job['seed'])
    gate = Gate()
    trainer = trl.SFTTrainer(
        language_model(job['model']), trl.SFTConfig(
            **shared(job), per_device_train_batch_size=rows, max_length=config['seq_len'], packing=packing,
            packing_strategy='bfd', max_steps=STEPS),
        train_dataset=dataset(input_ids=texts), processing_class=tokenizer(vocab), callbacks=[gate])

    def amount(batch: dict[str, Any]) -> float:
        return float((batch['labels'] != -100).sum()) + (0 if not packing else texts_in(batch))
    return Work(timed_steps(trainer, gate, job['updates'], 'tokens', amount))


def texts_in(batch: dict[str, Any]) -> int:
    """Of rows laid side by side the first token of each text is no label, but one of its tokens."""
    return int((batch['position_ids'] == 0).sum() - (batch['labels'][batch['position_ids'] == 0] != -100).sum())


if __name__ == '__main__':
    serve(make, ('torch', 'transformers', 'trl'))
