"""TRL's trainers, one step at a time: their own loop, in a thread that waits between turns.

In: a trainer; how much of the unit a batch has. Out: `serve.Work`. Arguments, tokenizer and data that trainers share.
"""

from collections import deque
from collections.abc import Callable
import os
import queue
import tempfile
import threading
import time
from typing import Any

import datasets
import tokenizers
import transformers

from tools.bench.serve import Turn

STEPS = 1_000_000  # more than are asked for


class Gate(transformers.TrainerCallback):
    """Lets the loop take a step when it is told to."""

    def __init__(self):
        self.started, self._told, self._done = False, threading.Semaphore(0), queue.Queue()

    def on_step_end(self, args, state, control, **more):
        self._done.put(None)
        self._told.acquire()

    def start(self, trainer: Any) -> None:
        """In a thread of its own; what it raises is raised where a step is waited for."""
        def train():
            try:
                trainer.train()
            except BaseException as error:
                self._done.put(error)
        threading.Thread(target=train, daemon=True).start()
        self.started = True

    def step(self, trainer: Any) -> None:
        if not self.started:
            self.start(trainer)
        else:
            self._told.release()
        error = self._done.get()
        if error is not None:
            raise error


def timed_steps(trainer: Any, gate: Gate, updates: int, unit: str, amount: Callable[[Any], float]) -> Turn:
    """Turns of so many updates; `amount` says how much of the unit a collated batch has."""
    made: deque[float] = deque()  # of the batches that are collated and not yet trained on
    collate = trainer.data_collator

    def counted(examples):
        batch = collate(examples)
        made.append(amount(batch))
        return batch
    trainer.data_collator = counted

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        for _ in range(updates):
            gate.step(trainer)
        return {f'{unit}/s': sum(made.popleft() for _ in range(updates)) / (time.perf_counter() - began)}
    return turn


def shared(job: dict[str, Any]) -> dict[str, Any]:
    """What all trainers are told: CPU, float32, AdamW and clipping as we have them, no logs, nothing saved."""
    optim = job['optim']
    return dict(output_dir=tempfile.mkdtemp(prefix='bench-'), use_cpu=True, bf16=False, fp16=False, report_to='none',
                logging_strategy='no', save_strategy='no', eval_strategy='no', disable_tqdm=True,
                optim='adamw_torch_fused', learning_rate=optim['learning_rate'], adam_beta1=optim['b1'],
                adam_beta2=optim['b2'], adam_epsilon=optim['eps'], weight_decay=optim['weight_decay'],
                max_grad_norm=optim['clip_norm'], lr_scheduler_type='constant', gradient_checkpointing=False,
                dataloader_pin_memory=False, seed=job['seed'])


def tokenizer(vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """One that splits at spaces; a token is written as its number."""
    names = {0: '<pad>', 1: '<bos>', 2: '<eos>', 3: '<unk>'}
    vocabulary = {names.get(index, str(index)): index for index in range(vocab_size)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='<unk>'))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token='<pad>', bos_token='<bos>',
                                                eos_token='<eos>', unk_token='<unk>', padding_side='left')


def dataset(**columns: list) -> datasets.Dataset:
    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(columns)


def leave_no_cache() -> None:
    """Prepared data sets stay in memory: nothing of an earlier run is found again."""
    os.environ['HF_DATASETS_CACHE'] = tempfile.mkdtemp(prefix='bench-')
    datasets.disable_caching()
