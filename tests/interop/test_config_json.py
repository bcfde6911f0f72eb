"""Values in a config.json whose type or size nothing else would notice: one line, too."""

import json

import pytest

from llm.errors import UserError
from llm.interop import config_json, json_file
from tests.interop import files

BERT = {'model_type': 'bert', 'architectures': ['BertForSequenceClassification'], 'hidden_size': 8, 'vocab_size': 24,
        'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 8, 'max_position_embeddings': 16}
VIT = {'model_type': 'vit', 'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 8}


@pytest.mark.parametrize('config, words', [
    (files.CONFIG | {'hidden_act': ['silu']}, "the activation ['silu']"),
    (files.CONFIG | {'architectures': [['LlamaForCausalLM']]}, 'is not one class known here'),
    (files.CONFIG | {'rope_scaling': {'rope_type': ['linear'], 'factor': 2.0}}, 'rope_scaling='),
    (BERT | {'num_labels': 0}, 'num_labels=0'), (BERT | {'num_labels': 'three'}, "num_labels='three'"),
    (VIT | {'image_size': 10**6, 'patch_size': 10**6}, 'image_size=1000000 is beyond any model')])
def test_lying_value_is_one_line(config, words):
    with pytest.raises(UserError) as error:
        config_json.decode(config)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_a_key_twice_is_found_soon():
    """Among 200,000 keys; each against each would take hours."""
    data = json.dumps({str(number): 0 for number in range(200_000)})
    with pytest.raises(UserError, match="the key '199999' is there twice"):
        json_file.parse(f'{data[:-1]}, "199999": 1}}'.encode(), 'a file')
