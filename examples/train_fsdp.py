"""Trains a small GPT-2 on several ranks with FSDP2 and saves beside the training: DCP in tspool's format.

    torchrun --nproc-per-node=2 examples/train_fsdp.py --root /tmp/run
    torchrun --nproc-per-node=1 examples/train_fsdp.py --root /tmp/run --resume --steps 80

The second run has another number of ranks: the checkpoint is resharded as it is loaded. Its losses are those that two ranks would
have gone on to, but for the order in which floats are summed: within 1e-4.

What has to do with checkpoints is in `main`, `state_of` and `resume`; the rest is any trainer.
"""

import argparse
import json
import pathlib
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tspool
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from tspool.torch import StorageReader, StorageWriter, async_save

TEXT = pathlib.Path(__file__).with_name("text.txt")


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attention(self.before_attention(x)).chunk(3, dim=-1)
        )
        attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.before_mlp(x))


class Gpt(nn.Module):
    """GPT-2, over bytes; the head is tied to the embedding."""

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def model_of(options: argparse.Namespace) -> Gpt:
    """The same on all ranks to begin with, then sharded over them."""
    torch.manual_seed(1)
    model = Gpt(options.width, options.layers, options.heads, options.context)
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def batch_of(step: int, text: torch.Tensor, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's share of the step's batch, which depends on the step alone."""
    starts = torch.randint(len(text) - options.context - 1, (options.batch,), generator=torch.Generator().manual_seed(step))
    own = starts.tensor_split(dist.get_world_size())[dist.get_rank()]
    pieces = torch.stack([text[start : start + options.context + 1] for start in own.tolist()])
    return pieces[:, :-1], pieces[:, 1:]


def train(step: int, model: Gpt, optimizer: torch.optim.Optimizer, text: torch.Tensor, options: argparse.Namespace) -> float:
    inputs, targets = batch_of(step, text, options)
    loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean.item() / dist.get_world_size()


def state_of(model: Gpt, optimizer: torch.optim.Optimizer, step: int) -> dict[str, object]:
    of_model, of_optimizer = get_state_dict(model, optimizer)
    return {"model": of_model, "optimizer": of_optimizer, "step": step}


def resume(root: str, model: Gpt, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on after. All ranks must load one checkpoint: rank 0 looks which."""
    found = [tspool.latest(root) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    if found[0] is None:
        return 0
    state = state_of(model, optimizer, 0)
    dcp.load(state, storage_reader=StorageReader(found[0]))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return int(state["step"])


def main() -> None:
    options = arguments()
    dist.init_process_group("gloo")
    text = torch.frombuffer(bytearray(pathlib.Path(options.text).read_bytes()), dtype=torch.uint8).long()
    model = model_of(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    step = resume(options.root, model, optimizer) if options.resume else 0
    writer, upload, losses = StorageWriter(arena_bytes=options.arena << 20), None, {}
    while step < options.steps:
        step += 1
        losses[step] = train(step, model, optimizer, text, options)
        if step % options.every:
            continue
        if upload is not None:
            upload.result()  # the save before this one: a failure shows here
        began = time.perf_counter()
        writer.metadata["step"] = step
        path = pathlib.Path(options.root, f"step-{step:08}")
        upload = async_save(state_of(model, optimizer, step), checkpoint_id=path, storage_writer=writer)
        if dist.get_rank() == 0:
            print(f"step {step}: loss {losses[step]:.4f}, {1000 * (time.perf_counter() - began):.1f} ms to begin the save")
    if upload is not None:
        upload.result()
    if options.losses and dist.get_rank() == 0:
        pathlib.Path(options.losses).write_text(json.dumps(losses))
    dist.barrier()
    dist.destroy_process_group()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="trains a small GPT-2 with FSDP2 and saves beside the training")
    parser.add_argument("--root", required=True, help="directory of the checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--steps", type=int, default=40, help="train up to this step")
    parser.add_argument("--every", type=int, default=10, help="save each so many steps")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step, over all ranks")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--arena", type=int, default=256, help="MiB of memory that hold a save until it is on disk")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--losses", help="write the losses there, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
