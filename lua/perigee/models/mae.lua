-- mae.lua - the encoder of a masked autoencoder (He et al., arXiv 2111.06377), for whole images: nothing is masked and
-- patches keep their order; and its files as transformers stores them (ViTMAEModel; docs/method.md, section 6.2).

local checkpoint = require "perigee.models.checkpoint"
local transformer = require "perigee.models.transformer"
local vit = require "perigee.models.vit"

-- The decoder of ViTMAEForPreTraining, and its prefix to the encoder's names, are left out.
local mae = { name = "mae", model_type = "vit_mae", architectures = { "ViTMAEModel", "ViTMAEForPreTraining" },
  prefix = "vit%.", ignored = { "^decoder%." } }

local DEFAULTS = { image = 224, patch = 16, width = 768, depth = 12, heads = 12, hidden = 3072, channels = 3,
  act = "gelu", eps = 1e-12 }

--- MAE's encoder with random weights; pg.models.load reads trained ones. The defaults are those of ViT-B/16. Positions
-- are sines and cosines in trained files; in fine-tuning they move like any parameter, as in the authors' code.
-- @param options {image = 224 (side), patch = 16, width = 768, depth = 12, heads = 12, hidden = 3072 (of the MLPs),
--   channels = 3, act = "gelu", eps = 1e-12}
-- @return a module as pg.models.vit gives: images (B, C, side, side) float32 -> (B, width), the class token after the
--   last LayerNorm; .config, .width, .depth
-- @raises on an unknown option, a size that is no whole number, patches that do not tile the image
function mae.new(options)
  local o = transformer.options("models.mae", options, DEFAULTS)
  return vit.tower("mae", o, { hidden = o.hidden })
end

-- ---- files ----------------------------------------------------------------------------------------------------------

-- Options from the fields of config.json.
function mae.read(c)
  c:only("qkv_bias", true)
  return { width = c:whole "hidden_size", depth = c:whole "num_hidden_layers", heads = c:whole "num_attention_heads",
    hidden = c:whole "intermediate_size", act = c:activation "hidden_act", eps = c:number "layer_norm_eps",
    image = c:whole "image_size", patch = c:whole "patch_size", channels = c:whole "num_channels" }
end

-- config.json of a model; transformers masks nothing then either.
function mae.write(model)
  local o = model.config
  return { architectures = { "ViTMAEModel" }, model_type = "vit_mae", hidden_size = o.width,
    num_hidden_layers = o.depth, num_attention_heads = o.heads, intermediate_size = o.hidden, hidden_act = o.act,
    layer_norm_eps = o.eps, image_size = o.image, patch_size = o.patch, num_channels = o.channels, qkv_bias = true,
    mask_ratio = 0, torch_dtype = model.positions:dtype() }
end

local BLOCK = {
  { "norm1.*", "layernorm_before.*" },
  { "attention.qkv.*", "attention.attention.query.*", "attention.attention.key.*", "attention.attention.value.*" },
  { "attention.proj.*", "attention.output.dense.*" },
  { "norm2.*", "layernorm_after.*" },
  { "mlp.fc1.*", "intermediate.dense.*" },
  { "mlp.fc2.*", "output.dense.*" },
}

-- The names of a model's tensors there.
function mae.layout(model)
  local layout, o = {}, model.config
  local patch = { o.width, o.channels, o.patch, o.patch }
  checkpoint.add(layout, "", "", {
    { "class_token", "embeddings.cls_token" },
    { "positions", "embeddings.position_embeddings" },
    { "patch.weight", "embeddings.patch_embeddings.projection.weight", shape = patch },
    { "patch.bias", "embeddings.patch_embeddings.projection.bias" },
    { "norm.*", "layernorm.*" },
  })
  for i = 1, o.depth do
    checkpoint.add(layout, ("blocks.%d."):format(i), ("encoder.layer.%d."):format(i - 1), BLOCK)
  end
  return layout
end

return mae
