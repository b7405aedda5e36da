"""The step of tests/bench/memory.lua in PyTorch, op for op, with its peak resident size.

    python3 tests/bench/memory.py [STEPS]"""

import resource
import sys
import time

import torch
from torch import nn

WIDTH, HEADS, DEPTH, BATCH = 768, 12, 12, 64
torch.manual_seed(1)
torch.set_num_threads(2)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, t, width))
        h = self.fc1(self.norm2(x))
        return x + self.fc2(h * torch.sigmoid(1.702 * h))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 32, 32, bias=False)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 50, WIDTH) * 0.02)
        self.norm_pre, self.norm, self.projection = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 512)
        self.blocks = nn.Sequential(*[Block(WIDTH, HEADS) for _ in range(DEPTH)])

    def forward(self, images):
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.projection(self.norm(self.blocks(self.norm_pre(x))[:, 0]))


model, head = Tower(), nn.Linear(512, 100)
text = nn.ModuleList([nn.Embedding(49408, 512), *[Block(512, 8) for _ in range(12)]])  # stands by, as CLIP's does
optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-5)
images, labels = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH)
for step in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
    began = time.time()
    optimiser.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(head(model(images)), labels).backward()
    optimiser.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"step {step + 1}: {time.time() - began:.2f} s, resident at most {peak:.2f} GB")
