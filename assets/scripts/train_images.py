"""Train the embedded image model: a judge, an image tokenizer and a class-conditional LlamaGen on handwritten digits.

    python assets/scripts/train_images.py --data mnist.npz --out assets/models/tiny-images --minutes 45

mnist.npz holds x_train, y_train, x_test and y_test, as Keras publishes it. The three are trained one after the other;
what an interrupted run finished is kept in --out and not trained again. The decoder's learning rate follows the clock
(--minutes), so the run ends annealed on a fast machine and on a slow one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from train_stories import optimizers, schedule
from transformers import JanusVQVAE, JanusVQVAEConfig

from numprune.evaluation.images.comparison import image_metrics
from numprune.evaluation.images.judge import Judge, Panel, load_panel
from numprune.evaluation.images.references import reference_from_images
from numprune.llamagen import LlamaGen
from numprune.llamagen.model import JUDGE_FOLDER, build

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SIZE, CODES, NULL_SHARE = 28, 256, 0.1
METRICS = ("fid", "sfid", "is", "precision", "recall")


def shifted(images: torch.Tensor, generator: torch.Generator, most: int = 2) -> torch.Tensor:
    """The batch moved by a few pixels, one move for all."""
    dy, dx = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return torch.roll(images, (dy, dx), dims=(2, 3))


def train_judge(images, labels, test, test_labels, epochs: int, seed: int) -> Panel:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge(channels=1, size=SIZE, classes=len(NAMES), data="mnist")
    batch = 128
    steps = epochs * (len(images) // batch)
    optim = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    order = torch.randperm(len(images), generator=generator)
    for step in range(steps):
        if (step * batch) % len(images) < batch:
            order = torch.randperm(len(images), generator=generator)
        for group in optim.param_groups:
            group["lr"] = 2e-3 * schedule(step / steps)
        rows = order[(step % (len(images) // batch)) * batch :][:batch]
        loss = F.cross_entropy(judge(shifted(images[rows], generator)), labels[rows])
        loss.backward()
        optim.step()
        optim.zero_grad()
        if step % 200 == 0:
            print(f"judge {step}/{steps} loss {float(loss.detach()):.4f}", flush=True)
    judge.eval().requires_grad_(False)
    coloured = test.expand(-1, 3, -1, -1)
    accuracy = float((torch.cat([judge(p).argmax(1) for p in test.split(500)]) == test_labels).double().mean())
    reference = reference_from_images(coloured, Panel(judge, None, accuracy, len(test)), METRICS)
    print(f"judge: accuracy {accuracy:.4f} on {len(test)} held-out images", flush=True)
    return Panel(judge, reference, accuracy, len(test))


def quantise(vq: JanusVQVAE, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit latents (n, grid, grid, embed) and their nearest codes (n, grid, grid)."""
    latents = F.normalize(vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1), dim=-1)
    return latents, (latents.detach() @ vq.quantize.embedding.weight.T).argmax(-1)


def train_tokenizer(images: torch.Tensor, minutes: float, seed: int) -> tuple[JanusVQVAE, dict]:
    """A quarter of the time without quantisation, then with a codebook that follows the latents as k-means does."""
    torch.manual_seed(seed)
    config = JanusVQVAEConfig(
        num_embeddings=CODES, embed_dim=8, latent_channels=64, in_channels=1, out_channels=1,
        base_channels=32, channel_multiplier=[1, 1, 2], num_res_blocks=1, num_patches=SIZE // 4,
    )  # fmt: skip
    vq = JanusVQVAE(config).train()
    vq.quantize.embedding.weight.requires_grad_(False)
    optim = torch.optim.AdamW([p for p in vq.parameters() if p.requires_grad], lr=2e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    codebook = vq.quantize.embedding.weight.data
    counts, sums = torch.ones(CODES), torch.zeros_like(codebook)
    quantised, step, running, began = False, 0, None, time.monotonic()
    while (done := (time.monotonic() - began) / 60 / minutes) < 1:
        pixels = images[torch.randint(len(images), (64,), generator=generator)] * 2 - 1
        for group in optim.param_groups:
            group["lr"] = 2e-3 * schedule(done)
        if done > 0.25 and not quantised:
            with torch.no_grad():
                sample = images[torch.randint(len(images), (512,), generator=generator)] * 2 - 1
                flat = torch.cat([quantise(vq, part)[0].flatten(0, 2) for part in sample.split(64)])
                codebook.copy_(flat[torch.randperm(len(flat), generator=generator)[:CODES]])
                for _ in range(20):
                    nearest = (flat @ codebook.T).argmax(-1)
                    total = torch.zeros_like(codebook).index_add_(0, nearest, flat)
                    used = total.norm(dim=-1) > 0
                    codebook[used] = F.normalize(total[used], dim=-1)
                counts.fill_(len(flat) / CODES)
                sums.copy_(codebook * counts[:, None])
            quantised = True
        latents, codes = quantise(vq, pixels)
        commit = torch.zeros(())
        shown = latents
        if quantised:
            entries = codebook[codes]
            shown = latents + (entries - latents).detach()
            commit = (latents - entries).square().sum(-1).mean()
            with torch.no_grad():
                flat, index = latents.detach().flatten(0, 2), codes.flatten()
                counts.mul_(0.99).add_(torch.bincount(index, minlength=CODES), alpha=0.01)
                sums.mul_(0.99).add_(torch.zeros_like(sums).index_add_(0, index, flat), alpha=0.01)
                codebook.copy_(F.normalize(sums, dim=-1))
                dead = counts < 0.5
                if dead.any() and done < 0.8:
                    fresh = flat[torch.randperm(len(flat), generator=generator)[: int(dead.sum())]]
                    codebook[dead] = fresh
                    counts[dead], sums[dead] = 5.0, fresh * 5
        painted = vq.decoder(vq.post_quant_conv(shown.permute(0, 3, 1, 2)))
        loss = F.mse_loss(painted, pixels)
        (loss + 0.25 * commit).backward()
        torch.nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        optim.step()
        optim.zero_grad()
        step, value = step + 1, float(loss.detach())
        running = value if running is None else 0.98 * running + 0.02 * value
        if step % 50 == 0:
            used = int((counts > 1).sum())
            print(f"tokenizer {step} done {done:.2f} error {running:.4f} codes {used}", flush=True)
    return vq.eval().requires_grad_(False), {"steps": step, "minutes": minutes, "squared_error": running}


@torch.inference_mode()
def encode(vq: JanusVQVAE, images: torch.Tensor) -> torch.Tensor:
    """Codes (n, grid * grid) of images, by the tokenizer's own encoder."""
    parts = [vq.encode(part * 2 - 1).image_tokens.view(len(part), -1) for part in images.split(256)]
    return torch.cat(parts).to(torch.int16)


def train_decoder(model: LlamaGen, codes, labels, held, held_labels, minutes, batch, lr, seed) -> dict:
    module = model.module.train()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    optims = optimizers(module, "muon", lr)
    generator = torch.Generator().manual_seed(seed)
    order, step, running, log = torch.empty(0, dtype=torch.long), 0, None, []
    began = last = time.monotonic()

    def loss_of(rows, classes):
        logits = model.forward(classes, rows[:, :-1])
        return F.cross_entropy(logits.reshape(-1, CODES), rows.reshape(-1))

    while (done := (time.monotonic() - began) / 60 / minutes) < 1:
        if len(order) < batch:
            order = torch.randperm(len(codes), generator=generator)
        rows, order = order[:batch], order[batch:]
        classes = labels[rows].clone()
        classes[torch.rand(len(classes), generator=generator) < NULL_SHARE] = model.null_class
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = lr * schedule(done)
        loss = loss_of(codes[rows].long(), classes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        step, value = step + 1, float(loss.detach())
        running = value if running is None else 0.98 * running + 0.02 * value
        if time.monotonic() - last > 60:
            with torch.no_grad():
                valid = float(loss_of(held[:512].long(), held_labels[:512]))
            entry = {"step": step, "minutes": (time.monotonic() - began) / 60, "train": running, "valid": valid}
            log.append({key: round(value, 4) for key, value in entry.items()})
            print(json.dumps(log[-1]), flush=True)
            last = time.monotonic()
    with torch.no_grad():
        losses = [float(loss_of(a.long(), b)) for a, b in zip(held.split(500), held_labels.split(500), strict=True)]
    module.eval().requires_grad_(False)
    facts = {"steps": step, "minutes": minutes, "images": step * batch, "epochs": step * batch / len(codes)}
    return facts | {"train_loss": running, "valid_loss": sum(losses) / len(losses), "log": log}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("tiny-images-training"), help="folder of finished stages")
    parser.add_argument("--epochs", type=int, default=8, help="of the judge")
    parser.add_argument("--tokenizer-minutes", type=float, default=8)
    parser.add_argument("--minutes", type=float, default=45, help="of the decoder")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    with np.load(args.data) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in ("x_train", "y_train", "x_test", "y_test")}
    images, test = (arrays[key][:, None].float() / 255 for key in ("x_train", "x_test"))
    labels, test_labels = arrays["y_train"].long(), arrays["y_test"].long()

    if not (args.work / "judge.json").exists():
        train_judge(images, labels, test, test_labels, args.epochs, args.seed).save(args.work)
    panel = load_panel(args.work)

    if not (args.work / "tokenizer.json").exists():
        vq, facts = train_tokenizer(images, args.tokenizer_minutes, args.seed)
        vq.save_pretrained(args.work / "vq", save_original_format=False)
        (args.work / "tokenizer.json").write_text(json.dumps(facts))
    tokenizer_facts = json.loads((args.work / "tokenizer.json").read_text())
    vq = JanusVQVAE.from_pretrained(args.work / "vq").eval().requires_grad_(False)
    if not (args.work / "codes.safetensors").exists():
        save_file({"train": encode(vq, images), "test": encode(vq, test)}, args.work / "codes.safetensors")
    codes = load_file(args.work / "codes.safetensors")

    torch.manual_seed(args.seed)
    model = build(
        classes=len(NAMES),
        vocab=CODES,
        grid=SIZE // 4,
        class_names=NAMES,
        vq_config=vq.config,
        name=args.out.name,
    )
    model.vq.load_state_dict(vq.state_dict())
    model.vq.requires_grad_(False)
    painted = model.decode(codes["test"].long())
    tokenizer_facts["recognised"] = panel.verdicts(painted).recognised(test_labels)
    print(f"tokenizer: {tokenizer_facts}", flush=True)
    facts = train_decoder(
        model, codes["train"], labels, codes["test"], test_labels, args.minutes, args.batch, args.lr, args.seed
    )
    model.module.half()
    model.save(args.out)
    (args.out / JUDGE_FOLDER).mkdir(exist_ok=True)
    panel.save(args.out / JUDGE_FOLDER)

    model.module.float()
    classes = torch.arange(2000) % len(NAMES)
    drawn = {}
    for scale in (1.0, 1.5, 2.0, 3.0, 4.0):
        pictures = model.decode(model.generate(classes, cfg_scale=scale, top_k=0, batch_size=250))
        values = image_metrics(pictures, panel, panel.reference, METRICS).values
        drawn[str(scale)] = {"recognised": panel.verdicts(pictures).recognised(classes)} | values
        print(f"guidance {scale}: {drawn[str(scale)]}", flush=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("data", "out", "work")}
    whole = {"judge_accuracy": panel.accuracy, "tokenizer": tokenizer_facts, "decoder": facts, "settings": settings}
    whole |= {"parameters": model.parameters, "samples": len(classes), "guidance": drawn}
    (args.out / "training.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
