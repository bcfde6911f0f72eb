"""transformers' side of experiments/interop_smollm2/speed.py: python -m tests.parity.reference.speed FOLDER

In: lines of [prompts, tokens to answer]. Out: for each a line of [seconds, answers]. Imports no jax.
"""

import json
import sys
import time

import torch
import transformers


def main(folder: str) -> None:
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for line in sys.stdin:
        prompts, length = json.loads(line)
        tokens = torch.tensor(prompts)
        model.generation_config = transformers.GenerationConfig(
            max_new_tokens=length, do_sample=False, pad_token_id=0, use_cache=True)
        began = time.perf_counter()
        with torch.no_grad():
            answer = model.generate(tokens, attention_mask=torch.ones_like(tokens))[:, tokens.shape[1]:].tolist()
        print(json.dumps([time.perf_counter() - began, answer]), flush=True)


if __name__ == '__main__':
    main(sys.argv[1])
