"""Pretraining steps with transformers and torch's AdamW, eager or through torch.compile.

In: a job of stage pretrain; `compile`. Out: tokens a second.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from tools.bench.peers.torch_models import adamw, language_model
from tools.bench.serve import serve, timed, Work


def make(job: dict[str, Any]) -> Work:
    torch.manual_seed(job['seed'])
    model = language_model(job['model'])
    run = torch.compile(model) if job.get('compile') else model
    return stepper(job, model.parameters(), adamw(model, job['optim']),
                   lambda ids: run(input_ids=ids, use_cache=False).logits)


def stepper(job: dict[str, Any], parameters: Iterable[torch.nn.Parameter], optimizer: torch.optim.Optimizer,
            logits_of: Callable[[torch.Tensor], torch.Tensor]) -> Work:
    """`job['updates']` updates a turn: forward, backward, clipping, AdamW, on new random tokens each."""
    parameters, vocab = list(parameters), job['model']['vocab_size']
    shape = job['config']['batch_size'], job['config']['seq_len'] + 1

    def updates() -> float:
        for _ in range(job['updates']):
            ids = torch.randint(0, vocab, shape)
            logits = logits_of(ids[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, vocab), ids[:, 1:].reshape(-1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, job['optim']['clip_norm'])
            optimizer.step()
        assert torch.isfinite(loss)
        return job['updates'] * shape[0] * (shape[1] - 1)
    return Work(timed('tokens', updates))


if __name__ == '__main__':
    serve(make, ('torch', 'transformers'))
