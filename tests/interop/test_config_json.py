"""Values in a config.json whose type or size nothing else would notice: one line, too."""

import json

import pytest

from llm.data import json_file
from llm.errors import UserError
from llm.interop import config_json
from tests.interop import files

BERT = {'model_type': 'bert', 'architectures': ['BertForSequenceClassification'], 'hidden_size': 8, 'vocab_size': 24,
        'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 8, 'max_position_embeddings': 16}
VIT = {'model_type': 'vit', 'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 8}


MISTRAL = {**files.CONFIG, 'model_type': 'mistral', 'architectures': ['MistralForCausalLM']}
GEMMA = {**files.CONFIG, 'model_type': 'gemma', 'architectures': ['GemmaForCausalLM']}


@pytest.mark.parametrize('config, words', [
    (files.CONFIG | {'hidden_act': ['silu']}, "the activation ['silu']"),
    (files.CONFIG | {'architectures': [['LlamaForCausalLM']]}, 'is not one class known here'),
    (files.CONFIG | {'rope_scaling': {'rope_type': ['linear'], 'factor': 2.0}}, 'rope_scaling='),
    (BERT | {'num_labels': 0}, 'num_labels=0'), (BERT | {'num_labels': 'three'}, "num_labels='three'"),
    (MISTRAL | {'sliding_window': -4}, 'sliding_window=-4'),
    (MISTRAL | {'sliding_window': 4, 'layer_types': ['sliding_attention', 'full_attention']},
     'contradicts sliding_window=4'),
    (MISTRAL | {'sliding_window': None, 'layer_types': ['sliding_attention'] * 2}, 'contradicts sliding_window=None'),
    (GEMMA | {'hidden_act': 'gelu', 'hidden_activation': 'gelu'}, "hidden_activation='gelu'"),
    (VIT | {'image_size': 10**6, 'patch_size': 10**6}, 'image_size=1000000 is beyond any model')])
def test_lying_value_is_one_line(config, words):
    with pytest.raises(UserError) as error:
        config_json.decode(config)
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('width, kind', [(4, 'sliding_attention'), (None, 'full_attention')])
def test_layer_types_of_mistral_may_say_again_what_its_window_says(width, kind):
    plain = MISTRAL | {'sliding_window': width}
    assert config_json.decode(plain | {'layer_types': [kind] * 2}) == config_json.decode(plain)


@pytest.mark.parametrize('keys', [{}, {'hidden_activation': None}, {'hidden_activation': 'gelu_pytorch_tanh'}], ids=str)
def test_gelu_in_the_first_gemma_is_the_tanh_form(keys):
    """As transformers 5.23.0 reads it: GemmaConfig.__post_init__."""
    tanh = config_json.decode(GEMMA | {'hidden_act': 'gelu_pytorch_tanh'})
    assert config_json.decode(GEMMA | {'hidden_act': 'gelu', **keys}) == tanh and tanh.model.mlp == 'geglu'


def test_a_key_twice_is_found_soon():
    """Among 200,000 keys; each against each would take hours."""
    data = json.dumps({str(number): 0 for number in range(200_000)})
    with pytest.raises(UserError, match="the key '199999' is there twice"):
        json_file.parse(f'{data[:-1]}, "199999": 1}}'.encode(), 'a file')
