"""nanoGPT's model as a bare torch module, after github.com/karpathy/nanoGPT, with biases: steps of pretraining.

In: a job of a GPT-2-like model. Out: tokens a second.
"""

from typing import Any

import torch
from torch.nn import functional

from tools.bench.peers.torch_models import adamw
from tools.bench.peers.transformers_pretrain import stepper
from tools.bench.serve import serve, Work


class Block(torch.nn.Module):
    """Attention and feed-forward, a norm before each."""

    def __init__(self, width: int, heads: int, mlp_dim: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, mlp_dim), torch.nn.Linear(mlp_dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm_1(x)).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate='tanh'))


class GPT(torch.nn.Module):
    """Token ids -> logits; the table of tokens is the head's, too."""

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        width = model['model_dim']
        self.tokens = torch.nn.Embedding(model['vocab_size'], width)
        self.positions = torch.nn.Embedding(model['max_positions'], width)
        self.blocks = torch.nn.ModuleList(Block(width, model['num_heads'], model['mlp_dim'])
                                          for _ in range(model['num_layers']))
        self.norm = torch.nn.LayerNorm(width)
        for table in (self.tokens, self.positions):
            torch.nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


def make(job: dict[str, Any]) -> Work:
    torch.manual_seed(job['seed'])
    model = GPT(job['model'])
    return stepper(job, model.parameters(), adamw(model, job['optim']), model)


if __name__ == '__main__':
    serve(make, ('torch',))
