"""The jobs' models and optimizer in torch: the same shapes and the same AdamW. Imports torch and transformers alone."""

from typing import Any

import torch
import transformers


def config_of(model: dict[str, Any], **more) -> transformers.PretrainedConfig:
    """transformers' config of a GPT-2-like or Llama-like model; nothing is dropped out."""
    if model['positions'] == 'learned':
        return transformers.GPT2Config(
            vocab_size=model['vocab_size'], n_positions=model['max_positions'], n_embd=model['model_dim'],
            n_layer=model['num_layers'], n_head=model['num_heads'], n_inner=model['mlp_dim'], resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0, **more)
    return transformers.LlamaConfig(
        vocab_size=model['vocab_size'], max_position_embeddings=model['max_positions'],
        hidden_size=model['model_dim'], num_hidden_layers=model['num_layers'],
        num_attention_heads=model['num_heads'], num_key_value_heads=model['num_kv_heads'], head_dim=model['head_dim'],
        intermediate_size=model['mlp_dim'], rms_norm_eps=model['norm_eps'], tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, **more)


def language_model(model: dict[str, Any]) -> torch.nn.Module:
    """In float32, with the attention that transformers takes by itself (torch's own, fused)."""
    return transformers.AutoModelForCausalLM.from_config(config_of(model), dtype=torch.float32)


def adamw(model: torch.nn.Module, optim: dict[str, Any]) -> torch.optim.Optimizer:
    """torch's AdamW, its fused form, with decay on matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return torch.optim.AdamW([{'params': matrices, 'weight_decay': optim['weight_decay']},
                              {'params': rest, 'weight_decay': 0.0}],
                             lr=optim['learning_rate'], betas=(optim['b1'], optim['b2']), eps=optim['eps'], fused=True)


def scorer(model: dict[str, Any]) -> torch.nn.Module:
    """The same trunk with one number at the last token."""
    return transformers.AutoModelForSequenceClassification.from_config(config_of(model, num_labels=1),
                                                                       dtype=torch.float32)
