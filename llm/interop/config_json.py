"""config.json <-> `ModelConfig`: every key is known, or refused by name.

In: the keys of a config.json; or a model config, its head, and the numbers of special tokens.
Out: `Described`: family, model config, head; or the keys of a config.json that transformers 5.23.0 reads.
Left out: which key is which field (`families.py`), reading the file (`llm/data/json_file.py`), tensors.

A key that is not in the family's lists is refused, because nothing tells whether it changes the maths.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from llm.architecture import ModelConfig
from llm.door import from_dict, nearest
from llm.errors import UserError
from llm.interop import layers_json
from llm.interop.families import FAMILIES, FIXED, IGNORED
from llm.interop.family import Family

_ACTS = {'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_exact'}
_GATED_ACTS = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu'}
_MOST_PIXELS = 16_384  # of an image, one way


class Described(NamedTuple):
    """What a config.json says: a key of `FAMILIES`, the model, its head as `Transformer.head` calls it."""

    model_type: str
    model: ModelConfig
    head: str


def decode(config: dict[str, Any], where: str = 'config.json') -> Described:
    """Raises UserError, one line with `where` and the key, for whatever is unknown, ill-typed or contradictory."""
    model_type = config.get('model_type')
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f'{where}: model_type={model_type!r} is not a family known here; known: {", ".join(FAMILIES)}')
    family = FAMILIES[model_type]
    if 'auto_map' in config:
        raise UserError(f'{where}: auto_map asks for code from the model\'s folder, which is never run; use a model '
                        f'that transformers has a class for')
    if config.get('quantization_config') is not None:
        raise UserError(f'{where}: quantization_config={config["quantization_config"]!r:.60} means packed weights; '
                        f'use the unquantised model')
    _check_keys(config, model_type, family, where)
    head = _head(config, family, where)
    read = {key: config.get(key, family.absent.get(key, ...)) for key in family.keys}
    missing = [key for key, value in read.items() if value is ...]
    if missing:
        raise UserError(f'{where}: {missing[0]} is missing; add what the model was made with')
    fields = {**family.ours, **{field: read[key] for key, field in family.keys.items()}}
    _complete(fields, config, model_type, head, where)
    for key, field in [*family.keys.items(), ('id2label', 'num_classes')]:
        _bounded(where, key, field, fields.get(field))
    try:
        return Described(model_type, from_dict(ModelConfig, fields), head)
    except UserError as error:
        raise UserError(f'{where}: {error}') from None


def _check_keys(config: dict[str, Any], model_type: str, family: Family, where: str) -> None:
    fixed = {**FIXED, **family.fixed}
    special = layers_json.WINDOW_KEYS * (model_type in layers_json.WINDOWED)
    special += layers_json.ROPE_KEYS * (family.ours['positions'] == 'rotary')
    special += ('attention_bias', 'mlp_bias') * (model_type == 'llama')
    known = {*family.keys, *special, *fixed, *family.ignored, *IGNORED}
    for key, value in config.items():
        if key not in known:
            close = nearest(key, known) if len(key) < 60 else ''
            raise UserError(f'{where}: {key[:60]}={value!r:.60} is not known to change nothing in {model_type}'
                            f'{close if "mean" in close else ""}; take it out if it is no part of the maths')
        if key in fixed and value not in fixed[key]:
            raise UserError(f'{where}: {key}={value!r:.60} is not what {model_type} is built for here '
                            f'({fixed[key][0]!r}); use a model with that')


def _head(config: dict[str, Any], family: Family, where: str) -> str:
    """By the class in `architectures`; a model without one is the family's first, its language model."""
    classes = config.get('architectures') or [next(iter(family.heads))]
    if not isinstance(classes, list) or len(classes) != 1 or classes[0] not in [*family.heads]:  # which may be a list
        raise UserError(f'{where}: architectures={classes!r:.80} is not one class known here; use one of '
                        f'{", ".join(family.heads)}')
    head = family.heads[classes[0]]
    if head == 'scalar' and _labels(config, where) != 1:
        raise UserError(f'{where}: {classes[0]} has {_labels(config, where)} labels; a scorer has num_labels=1')
    return head


def _labels(config: dict[str, Any], where: str) -> int:
    labels = config.get('id2label')
    if labels is not None and (not isinstance(labels, dict) or not labels):
        raise UserError(f'{where}: id2label={labels!r:.60} is not a table of labels; give one')
    count = len(labels) if labels else config.get('num_labels', 2)
    if layers_json.whole_number(count, 'num_labels', where) < 1:
        raise UserError(f'{where}: num_labels={count} leaves nothing to tell apart; mend it')
    return count


def _complete(fields: dict[str, Any], config: dict[str, Any], model_type: str, head: str, where: str) -> None:
    """Fields that follow from several keys, or from others; changes `fields`."""
    gated = fields['positions'] == 'rotary'
    acts, act = _GATED_ACTS if gated else _ACTS, fields['mlp']
    # The first release said so and meant the tanh form, as transformers 5.23.0 takes it (GemmaConfig.__post_init__;
    # it does not look at hidden_activation, which is null or gelu_pytorch_tanh in such files).
    if model_type == 'gemma' and act == 'gelu':
        act = 'gelu_pytorch_tanh'
    if not isinstance(act, str) or act not in acts:
        raise UserError(f'{where}: the activation {act!r:.60} is not known; use one of {", ".join(acts)}')
    fields['mlp'] = acts[act]
    for field in ('model_dim', 'num_heads', 'num_layers'):
        if type(fields[field]) is not int or fields[field] < 1:
            raise UserError(f'{where}: {field}={fields[field]!r:.60} is not a positive whole number; mend it')
    if fields.get('num_kv_heads') is None:
        fields['num_kv_heads'] = fields['num_heads']
    if fields.get('head_dim') is None:
        fields['head_dim'], rest = divmod(fields['model_dim'], fields['num_heads'])
        if rest:
            raise UserError(f'{where}: a width of {fields["model_dim"]} is not a multiple of {fields["num_heads"]} '
                            f'heads; give head_dim')
    if fields['mlp_dim'] is None:
        fields['mlp_dim'] = 4 * fields['model_dim']
    for cap in ('attention_softcap', 'logits_softcap'):
        if cap in fields and fields[cap] is None:
            fields[cap] = 0.0
    if 'query_scale' in fields:
        scale = layers_json.whole_number(fields['query_scale'], 'query_pre_attn_scalar', where)
        fields['query_scale'] = 0.0 if scale == fields['head_dim'] else float(scale)
    if model_type.startswith('gemma'):
        fields['embed_scale'] = math.sqrt(fields['model_dim'])
    if model_type == 'llama' and config.get('attention_bias', False) != config.get('mlp_bias', False):
        raise UserError(f'{where}: attention_bias={config.get("attention_bias", False)} and mlp_bias='
                        f'{config.get("mlp_bias", False)} differ; use a model with both or none')
    if model_type == 'llama':
        fields['use_bias'] = config.get('attention_bias', False)
    if head in ('classes', 'labels'):
        fields['num_classes'] = _labels(config, where)
    if model_type == 'roberta':
        offset = layers_json.whole_number(config.get('pad_token_id', 1), 'pad_token_id', where) + 1
        rows = layers_json.whole_number(fields['max_positions'], 'max_position_embeddings', where)
        fields |= {'position_offset': offset, 'max_positions': rows - offset}
    if model_type == 'vit':
        for key in ('image_size', 'patch_size'):
            if isinstance(fields[key], list) and len(set(map(str, fields[key]))) == 1:
                fields[key] = fields[key][0]
            if layers_json.whole_number(fields[key], key, where) > _MOST_PIXELS:
                raise UserError(f'{where}: {key}={fields[key]} is beyond any model; mend it')
        fields['max_positions'] = (fields['image_size'] // max(fields['patch_size'], 1)) ** 2 + 1
    if model_type in layers_json.WINDOWED:
        fields |= layers_json.window(config, model_type, fields['num_layers'], where)
    if fields['positions'] == 'rotary':
        fields |= layers_json.rotary(config, model_type, fields, where)


def _bounded(where: str, key: str, field: str, value: Any) -> None:
    most = layers_json.MOST_LAYERS if field == 'num_layers' else layers_json.MOST
    if isinstance(value, (int, float)) and not -most < value < most:  # NaN, too
        raise UserError(f'{where}: {key}={value!r:.60} is beyond any model; mend it')
    if field == 'norm_eps' and isinstance(value, (int, float)) and value < 0:
        raise UserError(f'{where}: {key}={value!r:.60} is negative; mend it')


def family_of(model: ModelConfig, head: str) -> str:
    """The first `model_type` whose files can say this model with this head."""
    for model_type in FAMILIES:
        if says(model, model_type, head):
            return model_type
    raise UserError(f'this model with the head {head!r} is of no family that transformers has a class for, because no '
                    f'config.json can say all of {model.stored()!r:.400}; train one of {", ".join(FAMILIES)}')


def says(model: ModelConfig, model_type: str, head: str) -> bool:
    """Whether a config.json of that type is read as the same model again."""
    if head not in FAMILIES[model_type].heads.values():
        return False
    try:
        again = decode(encode(model, model_type, head)).model
    except (UserError, KeyError):
        return False
    return dataclasses.replace(again, num_classes=0) == dataclasses.replace(model, num_classes=0)


def encode(model: ModelConfig, model_type: str, head: str, *, special_ids: dict[str, int | None] | None = None,
           dtype: str = 'float32') -> dict[str, Any]:
    """The keys of a config.json; `special_ids` has pad, bos, eos. KeyError where the family has no such activation."""
    family = FAMILIES[model_type]
    acts = _GATED_ACTS if family.ours['positions'] == 'rotary' else _ACTS
    named = {ours: theirs for theirs, ours in reversed(acts.items())}
    special = {'mlp': lambda: named[model.mlp], 'query_scale': lambda: int(model.query_scale) or model.head_dim,
               'attention_softcap': lambda: model.attention_softcap or None,
               'logits_softcap': lambda: model.logits_softcap or None,
               'max_positions': lambda: model.max_positions + model.position_offset}
    config = {'architectures': [next(name for name, has in family.heads.items() if has == head)],
              'model_type': model_type, 'dtype': dtype,
              **{key: special[field]() if field in special else getattr(model, field)
                 for key, field in family.keys.items()},
              **{key: values[0] for key, values in family.fixed.items() if values[0] is not None},
              **{f'{name}_token_id': index for name, index in (special_ids or {}).items()}}
    if model_type == 'llama':
        config |= {'attention_bias': model.use_bias, 'mlp_bias': model.use_bias}
    if model_type == 'roberta':
        config['pad_token_id'] = model.position_offset - 1
    if head in ('classes', 'labels', 'scalar'):
        count = 1 if head == 'scalar' else model.num_classes
        config['id2label'] = {str(label): f'LABEL_{label}' for label in range(count)}
        config['label2id'] = {f'LABEL_{label}': label for label in range(count)}
    if model_type in layers_json.WINDOWED:
        config |= layers_json.window_keys(model, model_type)
    if model.positions == 'rotary':
        config['rope_theta'] = model.rope_theta
        if model.rope_local_theta:
            config['rope_local_base_freq'] = model.rope_local_theta
        if model.rope_scaling is not None:
            config['rope_scaling'] = layers_json.scaling_keys(model.rope_scaling)
    return config
