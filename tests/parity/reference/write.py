"""References: what transformers computes with the models of `zoo.py`.

    python -m tests.parity.reference.write FOLDER

In: nothing. Out: FOLDER/models/<case>/model, as `save_pretrained` writes it; .../gradients/<batch>, the gradients of
the loss in the same format, so that they are imported as weights are; .../released.json, the config.json in the words
of older versions, as most released models have it; .../expected.npz, arrays named `<batch>/in/<input>`,
`<batch>/out/<output>`, `<batch>/label/<output>`, `<batch>/loss`, and `decode/*`.
FOLDER/tokenizers: see `texts.py`. Left out: any comparison. Imports no jax.
"""

import copy
import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch
import transformers

from tests.parity.reference import texts, zoo

NEW_TOKENS = 64
PROMPTS = (5, 9, 1)  # their lengths
VARIED = 8  # different tokens of every answer, at least
CLEAR = 1e-3  # the least difference between the best and the second logit in what is decoded: no tie is compared
HIDDEN = -1e4  # a span's logits on padding
IGNORED = -100

Outputs = dict[str, torch.Tensor]


def main(folder: pathlib.Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    for number, (name, case) in enumerate(zoo.cases().items()):
        write(folder / 'models' / name, case, seed=number)
    texts.write(folder / 'tokenizers')


def write(folder: pathlib.Path, case: zoo.Case, seed: int) -> None:
    model, random = zoo.build(case, seed), np.random.default_rng(seed)
    model.save_pretrained(folder / 'model')
    if hasattr(model.config, 'vocab_size'):
        texts.characters(model.config.pad_token_id).save_pretrained(folder / 'model')
    (folder / 'released.json').write_text(json.dumps(released(model.config)))
    arrays = {}
    for name, batch in case.batches(model.config, random).items():
        outputs = run(model, case.outputs, batch)
        labels = {key: labels_of(logits, batch, random) for key, logits in outputs.items() if key != 'mems'}
        value = loss(outputs, labels)
        save_gradients(case, model, value, folder / 'gradients' / name)
        arrays |= {f'{name}/in/{key}': array for key, array in batch.items()}
        arrays |= {f'{name}/out/{key}': logits.detach().numpy() for key, logits in outputs.items()}
        arrays |= {f'{name}/label/{key}': array.numpy() for key, array in labels.items()}
        arrays[f'{name}/loss'] = value.detach().numpy()
    if case.decodes:
        arrays |= {f'decode/{key}': array for key, array in decode(model, random).items()}
    np.savez(folder / 'expected.npz', **arrays)


def released(config: Any) -> dict[str, Any]:
    """The keys that released models have, which the transformers that runs here reads as the same config."""
    new = json.loads(config.to_json_string(use_diff=False))
    old = {key: value for key, value in new.items() if key not in ('rope_parameters', '_sliding_window_pattern')}
    old |= {'torch_dtype': old.pop('dtype'), 'transformers_version': '4.50.0'}
    kinds = old.pop('layer_types', None)
    if rope := new.get('rope_parameters'):
        if 'full_attention' in rope:  # Gemma 3
            old['sliding_window_pattern'] = kinds.index('full_attention') + 1
            old['rope_local_base_freq'] = rope['sliding_attention']['rope_theta']
            rope = rope['full_attention']
        old['rope_theta'] = rope['rope_theta']
        if rope['rope_type'] != 'default':
            old['rope_scaling'] = {key: value for key, value in rope.items() if key != 'rope_theta'}
    if config.model_type == 'gemma':
        old |= {'hidden_act': 'gelu', 'hidden_activation': None}  # which means the tanh form
    again = type(config)(**copy.deepcopy(old))  # it writes into what it is given
    for key in ('rope_parameters', 'layer_types', 'sliding_window', 'head_dim', 'tie_word_embeddings',
                'hidden_act'):
        assert getattr(again, key, None) == getattr(config, key, None), key
    return old


def run(model: torch.nn.Module, names: tuple[str, ...], batch: zoo.Batch) -> Outputs:
    """The outputs by name; a memory of an earlier segment is made first, and is an output."""
    inputs = {key: torch.from_numpy(array) for key, array in batch.items()}
    mems = {}
    if 'earlier_input_ids' in inputs:
        with torch.no_grad():
            mems['mems'] = model(input_ids=inputs.pop('earlier_input_ids'), use_mems=True).mems
    result = model(**inputs, **mems)
    outputs = {key: result[key] for key in names}
    for key in {'start_logits', 'end_logits'} & outputs.keys():
        outputs[key] = outputs[key].masked_fill(inputs['attention_mask'] == 0, HIDDEN)
    return outputs | {key: torch.stack(layers) for key, layers in mems.items()}


def labels_of(logits: torch.Tensor, batch: zoo.Batch, random: np.random.Generator) -> torch.Tensor:
    """Random classes: one a token where logits are [B, T, C], one a row where they are [B, C]; IGNORED on padding."""
    labels = random.integers(0, logits.shape[-1], logits.shape[:-1])
    if logits.ndim == 3 and 'attention_mask' in batch:
        labels = np.where(batch['attention_mask'], labels, IGNORED)
    if logits.ndim == 2 and logits.shape[-1] == zoo.LENGTH:  # a place of a span, which is none of padding
        labels = np.array([random.choice(np.flatnonzero(mask)) for mask in batch['attention_mask']])
    return torch.from_numpy(labels)


def loss(outputs: Outputs, labels: Outputs) -> torch.Tensor:
    """Mean cross-entropy of each output, summed; where there is one class, the mean of softplus(-score)."""
    total = torch.zeros(())
    for key, wanted in labels.items():
        logits = outputs[key]
        if logits.shape[-1] == 1:
            total = total + torch.nn.functional.softplus(-logits).mean()
        else:
            total = total + torch.nn.functional.cross_entropy(logits.flatten(0, -2), wanted.flatten(),
                                                              ignore_index=IGNORED)
    return total


def save_gradients(case: zoo.Case, model: torch.nn.Module, value: torch.Tensor, folder: pathlib.Path) -> None:
    """As the weights of a model of the same kind."""
    model.zero_grad()
    value.backward()
    copy = getattr(transformers, case.model)._from_config(model.config)
    with torch.no_grad():
        for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True):
            mine.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
    copy.save_pretrained(folder)


def decode(model: torch.nn.Module, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Greedy answers, with the cache, to a prompt of each length; transformers pads prompts on the left."""
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, use_cache=True, output_logits=True,
        return_dict_in_generate=True)  # no end token
    width = max(PROMPTS)
    lengths = np.tile(PROMPTS, 24)  # several of each, because not every answer will do
    mask = (np.arange(width) >= width - lengths[:, None]).astype(np.int64)
    prompts = random.integers(3, zoo.VOCAB, mask.shape) * mask
    done = model.generate(torch.from_numpy(prompts), attention_mask=torch.from_numpy(mask))
    answers = done.sequences.numpy()[:, width:]
    assert answers.shape[1] == NEW_TOKENS
    best = torch.stack(done.logits).topk(2).values.numpy()
    clear = (best[..., 0] - best[..., 1]).min(0) > CLEAR
    varied = np.array([len(set(answer)) >= VARIED for answer in answers.tolist()])
    rows = [np.flatnonzero(clear & varied & (lengths == length))[0] for length in PROMPTS]
    padded_right = np.stack([np.roll(prompts[row], lengths[row]) for row in rows])
    return {'prompt': padded_right, 'length': lengths[rows], 'answer': answers[rows]}


if __name__ == '__main__':
    main(pathlib.Path(sys.argv[1]))
