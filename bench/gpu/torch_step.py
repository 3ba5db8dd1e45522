"""The step of a job of examples/gpu in PyTorch, to compare with: torch.compile, SDPA, bf16 autocast over f32 weights,
fused AdamW, grouped products where PyTorch has them. NOT RUN YET: written without a GPU at hand.

    python3 torch_step.py gpt2-124m.yaml [--steps 50]

Prints one line of JSON: seconds of the median step (by CUDA events, after a warm-up) and tokens per second.
"""
import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch import nn


def read_job(path):
    """Two levels of `key: value`, as the jobs of examples/gpu are."""
    job, section = {}, None
    for line in open(path, encoding="utf-8"):
        line = line.split("#")[0].rstrip()
        if not line:
            continue
        key, _, value = line.strip().partition(":")
        if not line.startswith(" "):
            section = job.setdefault(key, {})
            continue
        value = value.strip()
        section[key] = int(value) if value.isdigit() else value
    return job


class Shape:
    def __init__(self, m):
        gpt2 = m["model_type"] == "gpt2"
        self.gpt2 = gpt2
        self.layers = m["n_layer" if gpt2 else "num_hidden_layers"]
        self.hidden = m["n_embd" if gpt2 else "hidden_size"]
        self.heads = m["n_head" if gpt2 else "num_attention_heads"]
        self.kv_heads = self.heads if gpt2 else m["num_key_value_heads"]
        self.inner = 4 * self.hidden if gpt2 else m["intermediate_size"]
        self.vocab = m["vocab_size"]
        self.positions = m["n_positions" if gpt2 else "max_position_embeddings"]
        self.experts = m.get("num_local_experts", m.get("num_experts", 0))
        self.top_k = m.get("num_experts_per_tok", 0)
        self.head = self.hidden // self.heads


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.qkv = nn.Linear(s.hidden, (s.heads + 2 * s.kv_heads) * s.head, bias=s.gpt2)
        self.out = nn.Linear(s.heads * s.head, s.hidden, bias=s.gpt2)

    def forward(self, x, cos, sin):
        s = self.s
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, -1, s.head).transpose(1, 2).split((s.heads, s.kv_heads, s.kv_heads), dim=1)
        if not s.gpt2:
            q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=s.heads != s.kv_heads)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.gated = not s.gpt2
        self.up = nn.Linear(s.hidden, (2 if self.gated else 1) * s.inner, bias=s.gpt2)
        self.down = nn.Linear(s.inner, s.hidden, bias=s.gpt2)

    def forward(self, x):
        if not self.gated:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Experts(nn.Module):
    """Top-k of softmax scores, rows sorted by expert, nothing dropped; balancing loss of Switch."""

    def __init__(self, s):
        super().__init__()
        self.s = s
        self.router = nn.Linear(s.hidden, s.experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(s.experts, s.hidden, 2 * s.inner))
        self.down = nn.Parameter(0.02 * torch.randn(s.experts, s.inner, s.hidden))
        self.aux = 0.0

    def products(self, rows, weights, counts):
        weights = weights.to(torch.bfloat16)
        if hasattr(torch, "_grouped_mm"):
            return torch._grouped_mm(rows, weights, offs=counts.cumsum(0).to(torch.int32))
        return torch.cat([r @ w for r, w in zip(rows.split(counts.tolist()), weights)])

    def forward(self, x):
        s = self.s
        flat = x.reshape(-1, s.hidden).to(torch.bfloat16)
        probs = self.router(flat).float().softmax(dim=-1)
        weights, index = probs.topk(s.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        order = index.flatten().argsort(stable=True)
        counts = torch.bincount(index.flatten(), minlength=s.experts)
        gate, up = self.products(flat[order // s.top_k], self.up, counts).chunk(2, dim=-1)
        rows = self.products(F.silu(gate) * up, self.down, counts)
        rows = rows * weights.flatten()[order, None].to(rows.dtype)
        self.aux = s.experts * (counts / order.numel() * probs.mean(dim=0)).sum()
        return torch.zeros_like(flat).index_add(0, order // s.top_k, rows).view_as(x)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        norm = nn.LayerNorm if s.gpt2 else nn.RMSNorm
        self.norm1, self.norm2 = norm(s.hidden), norm(s.hidden)
        self.attention = Attention(s)
        self.mlp = Experts(s) if s.experts else Mlp(s)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, s, seq):
        super().__init__()
        self.s = s
        self.tokens = nn.Embedding(s.vocab, s.hidden)
        self.positions = nn.Embedding(s.positions, s.hidden) if s.gpt2 else None
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = (nn.LayerNorm if s.gpt2 else nn.RMSNorm)(s.hidden)
        self.head = nn.Linear(s.hidden, s.vocab, bias=False)
        if s.gpt2:
            self.head.weight = self.tokens.weight
        angle = torch.outer(torch.arange(seq), 10000.0 ** (-torch.arange(0, s.head, 2) / s.head))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids, targets):
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        loss = F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())
        if self.s.experts:
            loss = loss + 0.01 * sum(block.mlp.aux for block in self.blocks) / len(self.blocks)
        return loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch_step: PyTorch sees no GPU")
    job = read_job(args.job)
    shape, train = Shape(job["model"]), job["train"]
    seq, micro, batch = train["sequence_length"], train["micro_batch_size"], train["global_batch_size"]
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = Model(shape, seq).cuda()
    step_of = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step():
        for _ in range(batch // micro):
            ids = torch.randint(shape.vocab, (micro, seq + 1), device="cuda")
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = step_of(ids[:, :-1], ids[:, 1:])
            (loss * (micro / batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(10):
        step()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(args.steps + 1)]
    marks[0].record()
    for i in range(args.steps):
        step()
        marks[i + 1].record()
    torch.cuda.synchronize()
    seconds = statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:])) * 1e-3
    print(json.dumps({"job": args.job, "torch": torch.__version__, "gpu": torch.cuda.get_device_name(0),
                      "step_s": seconds, "tokens_per_s": batch * seq / seconds,
                      "grouped_mm": hasattr(torch, "_grouped_mm")}))


if __name__ == "__main__":
    main()
