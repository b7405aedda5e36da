"""Writes CLIP ViT-B/32 and ViT-B/16 with random weights as transformers stores them, and expected.safetensors beside
each with what transformers computes, for tests/bench/full_size.lua. With --step it times PyTorch's own fine-tuning
step too.

    python3 tests/bench/full_size.py FOLDER [--step]"""

import pathlib
import resource
import sys
import time

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

folder = pathlib.Path(sys.argv[1])
torch.set_num_threads(2)
torch.manual_seed(3)

for patch in (32, 16):
    model = CLIPModel(CLIPConfig(vision_config=dict(patch_size=patch))).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "embed" not in name:
                p.normal_(0, 1 / p[0].numel() ** 0.5)
    path = folder / f"clip-b{patch}"
    model.save_pretrained(path, safe_serialization=True)
    images, ids = torch.randn(4, 3, 224, 224), torch.randint(0, 49406, (4, 77))
    for row in range(4):
        ids[row, 7 + 20 * row] = 49407
    began = time.time()
    with torch.no_grad():
        out = model(ids, images)
    print(f"transformers, ViT-B/{patch}: 4 images and 4 texts in {time.time() - began:.2f} s")
    tensors = dict(images=images, ids=ids.int(), image=model.get_image_features(images).detach(),
                   text=model.get_text_features(ids).detach(), logits=out.logits_per_image.contiguous())
    save_file(tensors, path / "expected.safetensors")
    if patch == 32 and "--step" in sys.argv:
        head = torch.nn.Linear(512, 100)
        parameters = [*model.vision_model.parameters(), *model.visual_projection.parameters(), *head.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=1e-5)
        images, labels = torch.randn(64, 3, 224, 224), torch.arange(64)
        for _ in range(3):
            began = time.time()
            optimiser.zero_grad()
            features = torch.nn.functional.normalize(model.get_image_features(images), dim=-1)
            torch.nn.functional.cross_entropy(head(features), labels).backward()
            optimiser.step()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"PyTorch: a step of ViT-B/32 at batch 64 in {time.time() - began:.2f} s, peak {peak:.2f} GiB")
