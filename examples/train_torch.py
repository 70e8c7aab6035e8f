#!/usr/bin/env python3
"""Trains a model in the shape of GPT-2 on the CPU and checkpoints while it trains. What tspool asks of it is marked with
[tspool].

    python examples/train_torch.py --root /tmp/run &
    kill -9 $!                                              # at any moment
    python examples/train_torch.py --root /tmp/run --resume

A resumed run prints the losses that an undisturbed one prints, bit for bit: the random numbers are part of the state. With
--layers 12 --width 768 --heads 12 --context 1024 it is GPT-2 124M.
"""

import argparse
import os
import pathlib

import torch
from torch import nn
from torch.nn import functional

import tspool  # [tspool]

TEXT = pathlib.Path(__file__).with_name("text.txt")


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.attention(self.norm_1(x)).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm_2(x))


class Model(nn.Module):
    """Over bytes. The head is tied to the embedding: one tensor under two names."""

    def __init__(self, layers: int, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        self.apply(self._begin)
        self.head.weight = self.tokens.weight

    def _begin(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.tokens(text) + self.places.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def batch_of(data: torch.Tensor, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(data) - options.context - 1, (options.batch, 1))
    windows = data[starts + torch.arange(options.context + 1)]
    return windows[:, :-1], windows[:, 1:]


def options_take() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="directory of the checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    for name, value in (
        ("steps", 200),
        ("save-every", 10),
        ("layers", 2),
        ("width", 64),
        ("heads", 4),
        ("context", 32),
        ("batch", 8),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dropout", type=float, default=0.1)
    return parser.parse_args()


def main() -> None:
    options = options_take()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    data = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
    model = Model(options.layers, options.width, options.heads, options.context, options.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    begin = 0
    os.makedirs(options.root, exist_ok=True)
    newest = tspool.latest(options.root) if options.resume else None  # [tspool] waits for a writer that is still finishing
    if newest is not None:
        state = tspool.load(newest)  # [tspool] every byte checked against its digest
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        begin = state["step"]
        print(f"resumed from {newest}", flush=True)
    with tspool.Spool(options.root) as spool:  # [tspool] before training: what is wrong with the directory shows here
        for step in range(begin + 1, options.steps + 1):
            text, wanted = batch_of(data, options)
            loss = functional.cross_entropy(model(text).flatten(0, 1), wanted.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"step {step} loss {loss.item():.4f} {loss.item().hex()}", flush=True)
            if step % options.save_every == 0 or step == options.steps:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "random": torch.get_rng_state(),
                }
                spool.save(  # [tspool] returns at once; the next optimizer.step() waits until everything was copied
                    f"step-{step:08}", state, metadata={"step": step}, staging="background", guard=optimizer, replace=True
                )


if __name__ == "__main__":
    main()
