"""A Llama decoder in PyTorch: trained here, stored as a Hugging Face folder.

Parameter names are the checkpoint's own, so saving is a copy. Rotary embedding
is the half-split form (x1, x2) that Llama checkpoints of that library use.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn


@dataclass
class Config:
    vocab_size: int = 768
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4096


TARGET = Config()
DRAFT = Config(hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=32)


# A CPU without bf16 arithmetic emulates it, ten times slower than f32.
BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def mixed_precision():
    """Matrix products in bf16 where the CPU has them."""
    return torch.autocast("cpu", torch.bfloat16, enabled=BF16)


def rms_norm(x, weight, eps):
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rotate(x, cos, sin):
    """x: [batch, heads, tokens, head_dim]; cos, sin: [tokens, head_dim / 2] or [batch, 1, tokens, head_dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def heads(self, x, cos, sin):
        batch, tokens, _ = x.shape
        split = lambda y: y.view(batch, tokens, -1, self.c.head_dim).transpose(1, 2)
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(self, x, cos, sin, cache=None, mask=None):
        q, k, v = self.heads(x, cos, sin)
        if cache is not None:
            k, v = cache(k, v)
        group = self.c.num_attention_heads // self.c.num_key_value_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # In f32: on a CPU the backward of short attention is twice as fast there as in bf16.
        with torch.autocast(x.device.type, enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=mask is None)
        y = y.to(x.dtype)
        return self.o_proj(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return rms_norm(x, self.weight.to(x.dtype), self.eps)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Mlp(c)

    def forward(self, x, cos, sin, cache=None, mask=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = Norm(c.hidden_size, c.rms_norm_eps)
        angles = torch.outer(torch.arange(c.max_position_embeddings).float(),
                             c.rope_theta ** -(torch.arange(0, c.head_dim, 2).float() / c.head_dim))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply(self._init)
        for layer in self.layers:  # residual writers start small
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(linear.weight, std=0.02 / (2 * c.num_hidden_layers) ** 0.5)

    @staticmethod
    def _init(module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)

    def hidden(self, ids):
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.embed_tokens.weight)

    def forward(self, ids):
        return self.logits(self.hidden(ids))


def hf_config(c):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **asdict(c),
        "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "hidden_act": "silu",
        "bos_token_id": None, "eos_token_id": 764, "pad_token_id": 765, "initializer_range": 0.02,
        "rope_scaling": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    }


def save_folder(model, folder, tokenizer):
    """config.json, generation_config.json, model.safetensors (BF16); the tokenizer is tokenizer.py's."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config(model.c)
    config["eos_token_id"], config["pad_token_id"] = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|pad|>")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = {k: config[k] for k in ("eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 3072, **ids}, indent=2) + "\n")
    tensors = {f"model.{k}": v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def load_folder(folder, dtype=torch.float32):
    raw = json.loads((Path(folder) / "config.json").read_text())
    model = Llama(Config(**{k: raw[k] for k in asdict(Config())}))
    tensors = load_file(str(Path(folder) / "model.safetensors"))
    model.load_state_dict({k.removeprefix("model."): v.to(dtype) for k, v in tensors.items()})
    return model.to(dtype).eval()
