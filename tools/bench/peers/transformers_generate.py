"""Generation with transformers: sampling with a cache, in batches that wait for their longest, or continuously batched.

In: a job of stage ppo; `limits`, if answers differ in length; `continuous`. Out: new tokens a second that were asked
for. Requests of different lengths go in batches of `config.batch_size`, in the order in which they come.
"""

from typing import Any

import torch
import transformers

from tools.bench import draws
from tools.bench.peers.torch_models import language_model
from tools.bench.serve import serve, timed, Work

_END = 2


def make(job: dict[str, Any]) -> Work:
    torch.manual_seed(job['seed'])
    transformers.utils.logging.disable_progress_bar()
    config, vocab = job['config'], job['model']['vocab_size']
    model = language_model(job['model']).eval()
    count = config['rollout_batch']
    most = draws.lengths(count, *job['limits'], job['seed']) if 'limits' in job else [config['max_new_tokens']] * count
    prompts = draws.tokens([config['max_prompt_tokens']] * count, vocab, job['seed'])
    batch = config['batch_size'] if 'limits' in job else count

    def static() -> float:
        for first in range(0, count, batch):
            here, asked = torch.tensor(prompts[first:first + batch]), most[first:first + batch]
            with torch.no_grad():
                model.generate(here, attention_mask=torch.ones_like(here), generation_config=settings(max(asked)))
        return float(sum(most))

    def continuous() -> float:
        with torch.no_grad(), model.continuous_batching_context_manager(
                generation_config=settings(max(most)), persistent_manager=True) as manager:
            for prompt, asked in zip(prompts, most):
                manager.add_request(prompt, max_new_tokens=asked)
            answered = 0
            while answered < count:
                found = manager.get_result(timeout=60)
                if found is None:
                    raise RuntimeError('continuous batching gave no answer within 60 s')
                answered += found.is_finished()
        return float(sum(most))
    return Work(timed('tokens', continuous if job.get('continuous') else static))


def settings(new_tokens: int) -> transformers.GenerationConfig:
    """Sampling at temperature 1 from the whole vocabulary; an answer has its full length."""
    return transformers.GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=None, do_sample=True, top_k=0,
                                         top_p=1.0, temperature=1.0, pad_token_id=0, eos_token_id=None, use_cache=True)


if __name__ == '__main__':
    serve(make, ('torch', 'transformers'))
