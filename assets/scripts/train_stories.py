"""Train the embedded story model: a small Llama on TinyStories.

    python assets/scripts/train_stories.py --data STORIES_DIR --out assets/models/tiny-stories --minutes 90

STORIES_DIR holds train.txt and valid.txt, stories separated by <|endoftext|>; without --data the public
dataset roneneldan/TinyStories is fetched by name. The learning rate follows the clock (--minutes), so the
run ends annealed on a fast machine and on a slow one. Progress is logged and a checkpoint is kept beside
the output; --resume continues an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEPARATOR = "<|endoftext|>"
# Typographic quotes and dashes are rare in the data; folding them saves vocabulary for words.
FOLD = str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "–": "-", "—": "-", "…": "..."})


def read_stories(folder: Path | None, split: str, limit: int | None) -> list[str]:
    if folder is None:
        from datasets import load_dataset

        name = {"train": "train", "valid": "validation"}[split]
        texts = load_dataset("roneneldan/TinyStories", split=name)["text"]
    else:
        texts = (folder / f"{split}.txt").read_text(encoding="utf8").split(SEPARATOR)
    stories = [text.translate(FOLD).strip() for text in texts]
    return [story for story in stories if story][:limit]


def train_tokenizer(stories: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", padding_side="left"
    )


def encode(tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> list[list[int]]:
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(stories)["input_ids"]]


def windows(encoded: list[list[int]], length: int, order: random.Random | None) -> torch.Tensor:
    """Stories end to end, shuffled when `order` is given, cut into (n, length + 1) windows."""
    encoded = list(encoded)
    if order is not None:
        order.shuffle(encoded)
    flat = torch.tensor([token for story in encoded for token in story])
    if order is not None:
        flat = flat[order.randrange(length) :]
    n = (len(flat) - 1) // length
    return torch.stack([flat[i * length : i * length + length + 1] for i in range(n)])


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, data: torch.Tensor, batch: int = 16) -> float:
    model.eval()
    total = 0.0
    for rows in data.split(batch):
        total += float(loss_of(model, rows)) * len(rows)
    model.train()
    return total / len(data)


def loss_of(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    logits = model(rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024; update RMS matched to AdamW, Liu et al. 2025, arXiv 2502.16982), batched by shape.

    torch.optim.Muon iterates in bfloat16 and matrix by matrix, four times the cost of the whole training step
    on a CPU without bfloat16 units; here equal shapes share one batched iteration in float32.
    """

    def __init__(self, params: list[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                for p in params:
                    self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 1 - group["momentum"])
                nesterov = [p.grad.lerp(self.state[p]["momentum"], group["momentum"]) for p in params]
                updates = orthogonalise(torch.stack(nesterov))
                for p, update in zip(params, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-0.2 * group["lr"] * max(shape) ** 0.5)


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz towards the nearest orthogonal matrix, (n, rows, columns)."""
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrices else x.mT


def optimizers(model: LlamaForCausalLM, kind: str, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    if kind == "adamw":
        return [torch.optim.AdamW(matrices + others, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)]
    adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    return [Muon(matrices, lr=lr), adam]


def schedule(done: float, warmup: float = 0.01, decay: float = 0.45) -> float:
    """Trapezoid over the fraction `done` of the time: up, flat, linearly down to 2 %."""
    if done < warmup:
        return done / warmup
    return max(0.02, min(1.0, (1 - done) / decay))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.txt and valid.txt; the public dataset if left out")
    parser.add_argument("--limit", type=int, help="use at most this many training stories")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train = read_stories(args.data, "train", args.limit)
    valid = read_stories(args.data, "valid", 500)
    tokenizer = train_tokenizer(train, args.vocabulary)
    encoded = encode(tokenizer, train)
    held_out = windows(encode(tokenizer, valid), args.length, None).to(device)
    print(f"{len(train)} stories, {sum(map(len, encoded))} tokens; held out: {held_out.shape}", flush=True)

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=args.channels,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=args.length,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(device).train()
    print(f"{model.num_parameters()} parameters on {device}", flush=True)
    optims = optimizers(model, args.optimizer, args.lr)

    state_file = args.out / "training-state.pt"
    step, spent, tokens, log = 0, 0.0, 0, []
    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume and state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        step, spent, tokens, log = state["step"], state["spent"], state["tokens"], state["log"]

    order = random.Random(args.seed + step)
    batches: list[torch.Tensor] = []
    running, last_report, last_save = None, time.monotonic(), time.monotonic()
    limit = args.minutes * 60
    while spent < limit:
        began = time.monotonic()
        if not batches:
            data = windows(encoded, args.length, order)
            batches = list(data[torch.tensor(order.sample(range(len(data)), len(data)))].split(args.batch))
        rows = batches.pop().to(device)
        rate = schedule(spent / limit)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = args.lr * rate
        loss = loss_of(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + rows[:, 1:].numel()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise SystemExit(f"loss became {value} at step {step}; lower --lr")
        running = value if running is None else 0.98 * running + 0.02 * value
        spent += time.monotonic() - began
        now = time.monotonic()
        if now - last_report > 60:
            held = validation_loss(model, held_out[:64])
            entry = {"step": step, "minutes": spent / 60, "tokens": tokens, "train": running, "valid": held}
            log.append(entry)
            print(json.dumps({k: round(v, 4) for k, v in entry.items()}), flush=True)
            last_report = now
        if now - last_save > 300:
            state = {"model": model.state_dict(), "optims": [o.state_dict() for o in optims]}
            state |= {"step": step, "spent": spent, "tokens": tokens, "log": log}
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
            save(model, tokenizer, args.out)
            last_save = now

    final = validation_loss(model, held_out)
    save(model, tokenizer, args.out)
    epochs = tokens / sum(map(len, encoded))
    facts = {"steps": step, "minutes": spent / 60, "tokens": tokens, "epochs": epochs}
    facts |= {"train_loss": running, "valid_loss": final, "parameters": model.num_parameters()}
    facts |= {"device": device, "settings": {k: v for k, v in vars(args).items() if k not in ("data", "out")}}
    (args.out / "training.json").write_text(json.dumps(facts | {"log": log}, indent=1) + "\n")
    state_file.unlink(missing_ok=True)
    print(json.dumps(facts), flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    state = {name: value.half() for name, value in model.state_dict().items()}
    config = model.config.__class__.from_dict(model.config.to_dict() | {"dtype": "float16"})
    half = LlamaForCausalLM(config).half()
    half.load_state_dict(state)
    half.generation_config.update(do_sample=True, temperature=0.8, top_p=0.95)
    half.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
