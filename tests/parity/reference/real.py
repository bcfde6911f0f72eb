"""References of real weights: MiniLM's embeddings, SmolLM2's logits, answer and tokens.

    python -m tests.parity.reference.real FOLDER

In: FOLDER/minilm, FOLDER/smollm2, as `tests/parity/packages.py` writes them. Out: FOLDER/minilm.npz,
FOLDER/smollm2.npz, FOLDER/smollm2.json. Left out: any comparison. Imports no jax.
"""

import json
import pathlib
import sys

import numpy as np
import tokenizers
import torch
import transformers

from tests.parity.reference import texts

SENTENCES = ('That is a happy person', 'That is a happy dog', 'That is a very happy person', 'Today is a sunny day')
QUESTION = [{'role': 'user', 'content': 'What is the capital of France?'}]
CHATS = [QUESTION, [{'role': 'system', 'content': 'Be brief.'}, *QUESTION],
         [*QUESTION, {'role': 'assistant', 'content': ' Paris.\n'}, {'role': 'user', 'content': 'And 1  in \u00e9?'}]]


def main(folder: pathlib.Path) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with torch.no_grad():
        minilm(folder / 'minilm')
        smollm2(folder / 'smollm2')


def minilm(folder: pathlib.Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors='pt')
    hidden = model(**batch).last_hidden_state
    mask = batch['attention_mask'][..., None]
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    np.savez(folder.with_suffix('.npz'), ids=batch['input_ids'], mask=batch['attention_mask'], hidden=hidden,
             cosines=pooled[1:] @ pooled[0])


def smollm2(folder: pathlib.Path) -> None:
    file = next(folder.glob('*.gguf')).name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # transformers' reading of GGUF drops what the file says of digits; the released tokenizer.json has it.
    made = tokenizers.pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = made.Sequence([
        made.Digits(individual_digits=True), made.ByteLevel(add_prefix_space=False)])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in CHATS]
    chats = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in CHATS]
    prompt = torch.tensor(prompts[:1])
    answer = model.generate(prompt, do_sample=False, max_new_tokens=16)[0, prompt.shape[1]:]
    np.savez(folder.with_suffix('.npz'), prompt=prompt[0], answer=answer, logits=model(prompt).logits[0])
    found = texts.encoded(tokenizer) | {'prompts': prompts, 'chats': chats,
                                        'answer': tokenizer.decode(answer, skip_special_tokens=True)}
    folder.with_suffix('.json').write_text(json.dumps(found | {'messages': CHATS}))


if __name__ == '__main__':
    main(pathlib.Path(sys.argv[1]))
