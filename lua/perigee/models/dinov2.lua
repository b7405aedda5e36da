-- dinov2.lua - DINOv2's image tower (Oquab et al., arXiv 2304.07193): layer scale, an MLP or SwiGLU, and positions for
-- images of any size; and its files as transformers stores them (Dinov2Model; docs/method.md, section 6.2).

local util = require "perigee.util"
local pg = require "perigee"
local checkpoint = require "perigee.models.checkpoint"
local transformer = require "perigee.models.transformer"
local vit = require "perigee.models.vit"

local dinov2 = { name = "dinov2", model_type = "dinov2", architectures = { "Dinov2Model" }, ignored = {} }

local DEFAULTS = { image = 518, patch = 14, width = 768, depth = 12, heads = 12, mlp = 4, swiglu = false, scale = 1,
  channels = 3, act = "gelu", eps = 1e-6, offset = 0.1 }

--- DINOv2 with random weights; pg.models.load reads trained ones. The defaults are those of ViT-B/14. Images may have
-- any size that patches tile: positions are then resampled bicubically (a = -3/4, no antialiasing, borders repeated)
-- from the stored grid of side S to R x C, by the factor (R + offset) / S. An offset of 0.1 is what transformers 4.36
-- and the original code do; 0 resamples to the size itself, as later versions of transformers.
-- @param options {image = 518 (side of the stored positions), patch = 14, width = 768, depth = 12, heads = 12, mlp = 4
--   (ratio), swiglu = false (the gated MLP of the giant, floor(floor(width mlp) 2/3) wide, up to a multiple of 8),
--   scale = 1 (where layer scale starts), channels = 3, act = "gelu" (without swiglu), eps = 1e-6, offset = 0.1}
-- @return a module as pg.models.vit gives: images (B, C, H, W) float32 -> (B, width), the class token after the last
--   LayerNorm; .config, .width, .depth
-- @raises on an unknown option, a size that is no whole number, patches that do not tile the image
function dinov2.new(options)
  local o = transformer.options("models.dinov2", options, DEFAULTS,
    { mlp = true, swiglu = true, scale = true, offset = true })
  for _, name in ipairs { "mlp", "scale", "offset" } do
    util.check(type(o[name]) == "number", "models.dinov2: %s must be a number, got %s", name, tostring(o[name]))
  end
  local hidden = math.floor(o.width * o.mlp)
  if o.swiglu then hidden = math.ceil(math.floor(hidden * 2 / 3) / 8) * 8 end
  util.check(hidden >= 1, "models.dinov2: mlp = %g leaves nothing of a width of %d", o.mlp, o.width)
  local self = vit.tower("dinov2", o, { hidden = hidden, swiglu = o.swiglu, scale = o.scale, resize = true })
  self.kept = { mask_token = pg.zeros(1, o.width) } -- of pre-training: not used, but part of the files
  return self
end

-- ---- files ----------------------------------------------------------------------------------------------------------

-- Options from the fields of config.json.
function dinov2.read(c)
  c:only("qkv_bias", true)
  return { width = c:whole "hidden_size", depth = c:whole "num_hidden_layers", heads = c:whole "num_attention_heads",
    mlp = c:number "mlp_ratio", act = c:activation "hidden_act", eps = c:number "layer_norm_eps",
    image = c:whole "image_size", patch = c:whole "patch_size", channels = c:whole "num_channels",
    scale = c:number "layerscale_value", swiglu = c:flag "use_swiglu_ffn" }
end

-- config.json of a model.
function dinov2.write(model)
  local o = model.config
  return { architectures = { "Dinov2Model" }, model_type = "dinov2", hidden_size = o.width, num_hidden_layers = o.depth,
    num_attention_heads = o.heads, mlp_ratio = o.mlp, hidden_act = o.act, layer_norm_eps = o.eps, image_size = o.image,
    patch_size = o.patch, num_channels = o.channels, layerscale_value = o.scale, use_swiglu_ffn = o.swiglu,
    qkv_bias = true, torch_dtype = model.positions:dtype() }
end

local BLOCK = {
  { "norm1.*", "norm1.*" },
  { "attention.qkv.*", "attention.attention.query.*", "attention.attention.key.*", "attention.attention.value.*" },
  { "attention.proj.*", "attention.output.dense.*" },
  { "scale1", "layer_scale1.lambda1" },
  { "norm2.*", "norm2.*" },
  { "scale2", "layer_scale2.lambda1" },
}
local MLP = { { "mlp.fc1.*", "mlp.fc1.*" }, { "mlp.fc2.*", "mlp.fc2.*" } }
local SWIGLU = { { "mlp.fc1.*", "mlp.weights_in.*" }, { "mlp.fc2.*", "mlp.weights_out.*" } }

-- The names of a model's tensors there.
function dinov2.layout(model)
  local layout, o = {}, model.config
  local patch = { o.width, o.channels, o.patch, o.patch }
  checkpoint.add(layout, "", "", {
    { "class_token", "embeddings.cls_token" },
    { "mask_token", "embeddings.mask_token" },
    { "positions", "embeddings.position_embeddings" },
    { "patch.weight", "embeddings.patch_embeddings.projection.weight", shape = patch },
    { "patch.bias", "embeddings.patch_embeddings.projection.bias" },
    { "norm.*", "layernorm.*" },
  })
  for i = 1, o.depth do
    local ours, theirs = ("blocks.%d."):format(i), ("encoder.layer.%d."):format(i - 1)
    checkpoint.add(layout, ours, theirs, BLOCK)
    checkpoint.add(layout, ours, theirs, o.swiglu and SWIGLU or MLP)
  end
  return layout
end

return dinov2
