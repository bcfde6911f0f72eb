"""Our exports as transformers sees them.

    python -m tests.parity.reference.load FOLDER

In: FOLDER/<name>/model, an exported folder; FOLDER/<name>/inputs.npz, arrays named `<batch>/<input>`;
FOLDER/texts.json, {'strings': [...], 'chats': [...]}. Out: FOLDER/<name>/found.npz, `<batch>/<output>`;
FOLDER/<name>/found.json: the class that was loaded, what transformers said of the folder, ids of strings and chats.
Loads as anybody would: by an Auto class, with no flag. Left out: any comparison. Imports no jax.
"""

import json
import logging
import pathlib
import sys
from typing import Any
import warnings

import numpy as np
import torch
import transformers

from tests.parity.reference import write, zoo

AUTO = {'CausalLM': 'CausalLM', 'LMHeadModel': 'CausalLM', 'MaskedLM': 'MaskedLM', 'PreTraining': 'PreTraining',
        'NextSentencePrediction': 'NextSentencePrediction', 'SequenceClassification': 'SequenceClassification',
        'TokenClassification': 'TokenClassification', 'QuestionAnswering': 'QuestionAnswering',
        'QuestionAnsweringSimple': 'QuestionAnswering', 'ImageClassification': 'ImageClassification'}


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(folder: pathlib.Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    said = Said()
    transformers.utils.logging.add_handler(said)
    texts = json.loads((folder / 'texts.json').read_text())
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        said.lines.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            found = look(path, texts)
        found['said'] = [*said.lines, *(str(warning.message) for warning in caught)]
        (path / 'found.json').write_text(json.dumps(found))


def look(path: pathlib.Path, texts: dict[str, list]) -> dict[str, Any]:
    config = json.loads((path / 'model/config.json').read_text())
    wanted, = config['architectures']
    auto = next((f'AutoModelFor{name}' for suffix, name in AUTO.items() if wanted.endswith(suffix)), 'AutoModel')
    model, info = getattr(transformers, auto).from_pretrained(path / 'model', output_loading_info=True)
    model.set_attn_implementation('eager')
    case = zoo.cases().get(path.name)
    outputs = case.outputs if case else ('logits',)
    arrays: dict[str, dict] = {}
    with np.load(path / 'inputs.npz') as inputs:
        for key in inputs:
            batch, name = key.split('/')
            arrays.setdefault(batch, {})[name] = inputs[key]
    results = {}
    with torch.no_grad():
        for batch, values in arrays.items():
            found = write.run(model.eval(), outputs, values)
            results |= {f'{batch}/{name}': array.numpy() for name, array in found.items()}
    np.savez(path / 'found.npz', **results)
    found = {'class': type(model).__name__, 'dtype': str(model.dtype), 'parameters': model.num_parameters(),
             'info': {key: sorted(map(str, value)) for key, value in info.items()}}
    return found | (look_at_tokenizer(path, texts) if 'vocab_size' in config else {})


def look_at_tokenizer(path: pathlib.Path, texts: dict[str, list]) -> dict[str, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(path / 'model')
    found = {'special': {name: getattr(tokenizer, f'{name}_token_id') for name in ('bos', 'eos', 'pad')},
             'ids': [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
                     for text in texts['strings']]}
    if tokenizer.chat_template:
        for name, prompt in (('chats', False), ('prompts', True)):
            found[name] = [tokenizer.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=False)
                           for chat in texts['chats']]
    return found


if __name__ == '__main__':
    main(pathlib.Path(sys.argv[1]))
