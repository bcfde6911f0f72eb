"""PPO iterations with TRL, policy, reference, reward and value model of one size.

In: a job of stage ppo. Out: seconds of an iteration. Answers are sampled, read and trained on at full length, whether
they end before it or not: what follows an end token is padding to TRL.
"""

import copy
import time
from typing import Any

from trl.experimental.ppo import PPOConfig, PPOTrainer

from tools.bench import draws
from tools.bench.peers.torch_models import language_model, scorer
from tools.bench.peers.trl_steps import dataset, Gate, leave_no_cache, shared, STEPS, tokenizer
from tools.bench.serve import serve, Work

PROMPTS = 1024


def make(job: dict[str, Any]) -> Work:
    leave_no_cache()
    config, vocab = job['config'], job['model']['vocab_size']
    count = config['rollout_batch']
    prompts = draws.tokens([config['max_prompt_tokens']] * PROMPTS, vocab, job['seed'])
    policy, gate = language_model(job['model']), Gate()
    arguments = shared(job) | {'learning_rate': config['optim.learning_rate']}
    trainer = PPOTrainer(
        PPOConfig(**arguments, per_device_train_batch_size=count, gradient_accumulation_steps=1,
                  num_mini_batches=count // config['batch_size'], num_ppo_epochs=config.get('epochs', 4),
                  response_length=config['max_new_tokens'], temperature=1.0, missing_eos_penalty=1.0,
                  stop_token='eos' if 'ends' in job else None, total_episodes=STEPS * count,
                  local_rollout_forward_batch_size=count, num_sample_generations=0),
        processing_class=tokenizer(vocab), model=policy, ref_model=copy.deepcopy(policy),
        reward_model=scorer(job['model']), value_model=scorer(job['model']), train_dataset=dataset(input_ids=prompts),
        eval_dataset=dataset(input_ids=prompts[:count]), callbacks=[gate])

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        gate.step(trainer)
        return {'s': time.perf_counter() - began}
    return Work(turn)


if __name__ == '__main__':
    serve(make, ('torch', 'transformers', 'trl'))
