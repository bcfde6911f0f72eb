"""Generation with Tunix's own sampler, in batches that wait for their longest.

In: a job of stage ppo; `limits`, if answers differ in length. Out: new tokens a second that were asked for. Requests of
different lengths go in batches of `config.batch_size`, in the order in which they come.
"""

from typing import Any

from tunix.generate.sampler import CacheConfig, Sampler

from tools.bench import draws
from tools.bench.peers.tunix_models import language_model, PACKAGES, Tokenizer
from tools.bench.serve import serve, timed, Work


def make(job: dict[str, Any]) -> Work:
    """Each turn with another seed. A cache has room for the longest answer and no more."""
    config, sizes = job['config'], job['model']
    count, prompt_tokens = config['rollout_batch'], config['max_prompt_tokens']
    most = draws.lengths(count, *job['limits'], job['seed']) if 'limits' in job else [config['max_new_tokens']] * count
    tokenizer, turn = Tokenizer(), [0]
    prompts = [*map(tokenizer.decode, draws.tokens([prompt_tokens] * count, sizes['vocab_size'], job['seed']))]
    batch = config['batch_size'] if 'limits' in job else count
    sampler = Sampler(language_model(sizes, job['seed']), tokenizer, CacheConfig(
        prompt_tokens + max(most), sizes['num_layers'], sizes['num_kv_heads'], sizes['head_dim']))

    def answers() -> float:
        turn[0] += 1
        for first in range(0, count, batch):
            new_tokens = max(most[first:first + batch])
            said = sampler(prompts[first:first + batch], max_generation_steps=new_tokens,
                           max_prompt_length=prompt_tokens, temperature=1.0, top_p=1.0, seed=turn[0])
            assert all(len(tokens) == new_tokens for tokens in said.tokens)
        return float(sum(most))
    return Work(timed('tokens', answers))


if __name__ == '__main__':
    serve(make, PACKAGES)
