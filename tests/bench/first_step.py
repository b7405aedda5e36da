"""first_step.lua in PyTorch: a CLIP image tower in PyTorch's layers, its weights read from the same safetensors file
without a further package, Fashion-MNIST by gzip and NumPy."""

import gzip
import json
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
torch.manual_seed(1)
FOLDER, DATA = "recipes/clip_small/", "/usr/share/datasets/fashion-mnist/t10k-"

c = json.load(open(FOLDER + "config.json"))["vision_config"]
WIDTH, HEADS = c["hidden_size"], c["num_attention_heads"]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        b, t, w = x.shape
        q, k, v = (p(x).reshape(b, t, HEADS, w // HEADS).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = torch.softmax(q @ k.transpose(-2, -1) * (w // HEADS) ** -0.5, -1) @ v
        return self.out_proj(y.transpose(1, 2).reshape(b, t, w))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(WIDTH, eps=c["layer_norm_eps"]) for _ in range(2))
        self.self_attn = Attention()
        hidden = c["intermediate_size"]
        self.mlp = nn.ModuleDict(dict(fc1=nn.Linear(WIDTH, hidden), fc2=nn.Linear(hidden, WIDTH)))

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x))))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        tokens = (c["image_size"] // c["patch_size"]) ** 2 + 1
        self.patch = nn.Conv2d(3, WIDTH, c["patch_size"], c["patch_size"], bias=False)
        self.token, self.positions = nn.Parameter(torch.empty(WIDTH)), nn.Parameter(torch.empty(tokens, WIDTH))
        self.before, self.after = (nn.LayerNorm(WIDTH, eps=c["layer_norm_eps"]) for _ in range(2))
        self.blocks = nn.ModuleList(Block() for _ in range(c["num_hidden_layers"]))
        self.projection = nn.Linear(WIDTH, c["projection_dim"], bias=False)

    def forward(self, images):
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = self.before(torch.cat([self.token.expand(len(x), 1, WIDTH), x], 1) + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.after(x[:, 0]))


def load(path, model):
    blob = np.memmap(path, np.uint8, "r")
    size = int(blob[:8].view("<u8")[0])
    names = {"vision_model.embeddings.patch_embedding.weight": "patch.weight",
             "vision_model.embeddings.class_embedding": "token",
             "vision_model.embeddings.position_embedding.weight": "positions",
             "visual_projection.weight": "projection.weight"}
    state = {}
    for name, entry in json.loads(bytes(blob[8 : 8 + size])).items():
        if name not in names and not name.startswith("vision_model."):
            continue
        own = names.get(name, name.replace("vision_model.", "").replace("encoder.layers", "blocks")
                        .replace("pre_layrnorm", "before").replace("post_layernorm", "after"))
        if own.endswith("position_ids"):
            continue
        start, end = entry["data_offsets"]
        halves = np.array(blob[8 + size + start : 8 + size + end]).view("<u2")  # bfloat16: the upper half of a float32
        values = (halves.astype(np.uint32) << 16).view(np.float32)
        state[own] = torch.from_numpy(values.reshape(entry["shape"]))
    model.load_state_dict(state)


def idx(path, header):
    with gzip.open(path) as f:
        return np.frombuffer(f.read(), np.uint8, offset=header)


model, head = Tower(), nn.Linear(WIDTH, 10)
load(FOLDER + "model.safetensors", model)
pictures = idx(DATA + "images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
labels = torch.from_numpy(idx(DATA + "labels-idx1-ubyte.gz", 8).astype(np.int64))
images = torch.from_numpy(np.pad(pictures, ((0, 0), (2, 2), (2, 2))))[:, None].expand(-1, 3, 32, 32)
parameters = [*model.parameters(), *head.parameters()]
adamw = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)

batch = torch.randperm(len(images))[:64]
loss = F.cross_entropy(head(F.normalize(model(images[batch].float() / 255), dim=-1)), labels[batch])
loss.backward()
nn.utils.clip_grad_norm_(parameters, 1)
adamw.step()
print(loss.item())
