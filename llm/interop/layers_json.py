"""Windows and rotary positions in a config.json, in the words of released models and in those of transformers 5.

In: the keys of a config.json; or a model config. Out: our fields; or those keys, as transformers 5.23.0 reads them.
Left out: all other keys (`config_json.py`).
"""

import math
from typing import Any

from llm.architecture import ModelConfig, RopeScaling
from llm.errors import UserError

MOST = 2**31  # of any size: a tensor with more along an axis is nobody's
MOST_LAYERS = 10_000
WINDOW_KEYS = ('sliding_window', 'layer_types', 'use_sliding_window', 'max_window_layers', 'sliding_window_pattern')
ROPE_KEYS = ('rope_theta', 'rope_scaling', 'rope_parameters', 'rope_local_base_freq', 'partial_rotary_factor')
WINDOWED = {'mistral': 0, 'qwen2': 0, 'qwen3': 0, 'gemma2': 2, 'gemma3_text': 6}  # family -> global_every by default
_ROPE_FIELDS = {'factor': 'factor', 'low_freq_factor': 'low_freq_factor', 'high_freq_factor': 'high_freq_factor',
                'original_max_position_embeddings': 'original_positions'}


def whole_number(value: Any, key: str, where: str) -> int:
    if type(value) is not int or not 0 <= value < MOST:
        raise UserError(f'{where}: {key}={value!r:.60} is not a whole number from 0 to {MOST}; mend it')
    return value


def window(config: dict[str, Any], model_type: str, layers: int, where: str) -> dict[str, int]:
    """`window` and `global_every`: the layers without a window must be every n-th one."""
    width = config.get('sliding_window', 4096)
    if model_type.startswith('qwen') and not config.get('use_sliding_window', False):
        width = 0
    width = whole_number(width or 0, 'sliding_window', where)
    if layers > MOST_LAYERS:
        raise UserError(f'{where}: num_hidden_layers={layers} is beyond any model; mend it')
    every = whole_number(config.get('sliding_window_pattern') or WINDOWED[model_type], 'sliding_window_pattern', where)
    full = [bool(every) and layer % every == every - 1 for layer in range(layers)]
    if model_type.startswith('qwen'):
        first = whole_number(config.get('max_window_layers', 28), 'max_window_layers', where)
        full = [layer < first for layer in range(layers)]
    if config.get('layer_types') is not None:
        names = config['layer_types']
        if (not isinstance(names, list) or len(names) != layers
                or any(name not in ('full_attention', 'sliding_attention') for name in names)):
            raise UserError(f'{where}: layer_types={names!r:.60} is not full_attention or sliding_attention for each '
                            f'of {layers} layers; mend it')
        full = [name == 'full_attention' for name in names]
        if model_type == 'mistral' and full != [not width] * layers:  # transformers 5.23.0 does not look at them there
            raise UserError(f'{where}: layer_types={names!r:.60} contradicts sliding_window={width or None}, which is '
                            f'for all layers of mistral; take layer_types out')
    if not width or all(full):
        return {'window': 0, 'global_every': 0}
    every = full.index(True) + 1 if any(full) else 0
    if full == [bool(every) and layer % every == every - 1 for layer in range(layers)]:
        return {'window': width, 'global_every': every}
    raise UserError(f'{where}: the layers without a window ({[n for n, whole in enumerate(full) if whole]!r:.60}) are '
                    f'not every n-th one; use a model where they are')


def rotary(config: dict[str, Any], model_type: str, fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Rotary fields, from keys of their own or from the `rope_parameters` of transformers 5."""
    given = config.get('rope_parameters')
    theta = config.get('rope_theta')
    local = config.get('rope_local_base_freq')
    if config.get('partial_rotary_factor') not in (None, 1.0):
        raise UserError(f'{where}: partial_rotary_factor={config["partial_rotary_factor"]!r:.60} turns a part of a '
                        f'head, which no family here does; use a model with 1.0')
    scaling = config.get('rope_scaling')
    if given is not None:
        if not isinstance(given, dict):
            raise UserError(f'{where}: rope_parameters={given!r:.60} is not a table; mend it')
        if 'sliding_attention' in given or 'full_attention' in given:
            sliding, given = given.get('sliding_attention'), given.get('full_attention')
            if not isinstance(sliding, dict) or not isinstance(given, dict) or sliding.get('rope_type') != 'default':
                raise UserError(f'{where}: rope_parameters.sliding_attention={sliding!r:.60} is not plain rotary '
                                f'positions; use a model where it is')
            local = _same(local, sliding.get('rope_theta'), 'rope_local_base_freq', where)
        theta = _same(theta, given.get('rope_theta'), 'rope_theta', where)
        rest = {key: value for key, value in given.items() if key != 'rope_theta'}
        scaling = _same(scaling, rest, 'rope_scaling', where)
    default = {'gemma3_text': 1e6}.get(model_type, 1e4)
    theta = default if theta is None else theta
    for key, value in (('rope_theta', theta), ('rope_local_base_freq', local)):
        if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
            raise UserError(f'{where}: {key}={value!r:.60} is not a positive number; mend it')
    rope = {'rope_theta': float(theta), 'rope_scaling': _scaling(scaling, config, where)}
    if model_type == 'gemma3_text' and fields['window']:
        rope['rope_local_theta'] = float(1e4 if local is None else local)
    return rope


def _same(old: Any, new: Any, key: str, where: str) -> Any:
    if old is not None and new is not None and old != new:
        raise UserError(f'{where}: {key}={old!r:.60} contradicts rope_parameters, which say {new!r:.60}; keep one')
    return old if new is None else new


def _scaling(scaling: Any, config: dict[str, Any], where: str) -> dict[str, Any] | None:
    if scaling is None:
        return None
    kind = scaling.get('rope_type', scaling.get('type')) if isinstance(scaling, dict) else None
    if kind == 'default' and len(scaling) == 1:
        return None
    allowed = {'linear': ('factor',), 'llama3': tuple(_ROPE_FIELDS)}.get(kind if isinstance(kind, str) else None)
    if allowed is None:
        raise UserError(f'{where}: rope_scaling={scaling!r:.80} is not known; use a model with default, '
                        f'linear or llama3')
    unknown = sorted(scaling.keys() - {*allowed, 'rope_type', 'type'})
    if unknown:
        raise UserError(f'{where}: rope_scaling.{unknown[0]}={scaling[unknown[0]]!r:.60} is not known for {kind}; use '
                        f'a model without it')
    whole = {'original_max_position_embeddings': config.get('max_position_embeddings'), **scaling}
    for key in allowed:
        if type(whole.get(key)) not in (int, float) or not 0 < whole[key] < math.inf:
            raise UserError(f'{where}: rope_scaling.{key}={whole.get(key)!r:.60} is not a positive number; mend it')
    return {'kind': kind, **{_ROPE_FIELDS[key]: whole[key] for key in allowed}}


def window_keys(model: ModelConfig, model_type: str) -> dict[str, Any]:
    full = [not model.window or bool(model.global_every) and layer % model.global_every == model.global_every - 1
            for layer in range(model.num_layers)]
    types = ['full_attention' if whole else 'sliding_attention' for whole in full]
    if model_type == 'mistral':  # it has no kinds of layers
        return {'sliding_window': model.window or None}
    keys = {'sliding_window': model.window or None, 'layer_types': types}
    if model_type.startswith('qwen'):
        keys |= {'use_sliding_window': model.window > 0, 'max_window_layers': 0 if model.window else model.num_layers}
    return keys


def scaling_keys(scaling: RopeScaling) -> dict[str, Any]:
    allowed = ('factor',) if scaling.kind == 'linear' else tuple(_ROPE_FIELDS)
    return {'rope_type': scaling.kind, **{key: getattr(scaling, _ROPE_FIELDS[key]) for key in allowed}}
