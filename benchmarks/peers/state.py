"""What is saved: GPT-2 124M with Adam (444 tensors, 1.39 GiB), or 20,000 tensors of 1 to 16 KiB; less of either for a try."""
from __future__ import annotations

import math
from typing import Any

SMALL_COUNT = 20_000
BLOCK = {"ln_1.weight": (768,), "ln_1.bias": (768,), "attn.c_attn.weight": (768, 2304), "attn.c_attn.bias": (2304,),
         "attn.c_proj.weight": (768, 768), "attn.c_proj.bias": (768,), "ln_2.weight": (768,), "ln_2.bias": (768,),
         "mlp.c_fc.weight": (768, 3072), "mlp.c_fc.bias": (3072,), "mlp.c_proj.weight": (3072, 768), "mlp.c_proj.bias": (768,)}

Shapes = dict[str, tuple[int, ...]]


def gpt2_shapes() -> Shapes:
    model: Shapes = {"transformer.wte.weight": (50257, 768), "transformer.wpe.weight": (1024, 768)}
    for layer in range(12):
        model |= {f"transformer.h.{layer}.{name}": shape for name, shape in BLOCK.items()}
    model |= {"transformer.ln_f.weight": (768,), "transformer.ln_f.bias": (768,)}
    parts = ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")
    return {f"{part}.{name}": shape for part in parts for name, shape in model.items()}


def small_shapes() -> Shapes:
    """1 to 16 KiB, each size as often as every other."""
    return {f"experts.{number}.weight": (256 * (1 + number * 7 % 16),) for number in range(SMALL_COUNT)}


def bytes_of(shapes: Shapes) -> int:
    return sum(4 * math.prod(shape) for shape in shapes.values())


def shapes_of(kind: str, limit: int | None) -> Shapes:
    """limit: about so many bytes. Large tensors shrink in their first dimension, of small ones there are fewer."""
    shapes = {"gpt2": gpt2_shapes, "small": small_shapes}[kind]()
    if kind == "small":
        count = round(len(shapes) * limit / bytes_of(shapes)) if limit else len(shapes)
        return dict(list(shapes.items())[:max(1, count)])
    vectors: Shapes = {name: shape for name, shape in shapes.items() if len(shape) == 1}
    shares = (limit - bytes_of(vectors)) / (bytes_of(shapes) - bytes_of(vectors)) if limit else 1.0
    share = min(1.0, max(0.0, shares))
    return {name: shape if name in vectors else (max(1, round(share * shape[0])), *shape[1:]) for name, shape in shapes.items()}


def state_of(shapes: Shapes, seed: int = 1) -> dict[str, Any]:
    """Incompressible float32 tensors, the same ones for a seed."""
    import torch
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.empty(shape).uniform_(-1, 1, generator=generator) for name, shape in shapes.items()}
