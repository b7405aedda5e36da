-- clip_files.lua - CLIP as the library transformers stores it: config.json and the names of CLIPModel (docs/method.md,
-- section 6.2).

local checkpoint = require "perigee.models.checkpoint"
local clip = require "perigee.models.clip"

local files = { name = "clip", model_type = "clip", architectures = { "CLIPModel" }, new = clip.new,
  ignored = { "%.position_ids$" } }

-- ---- config.json ----------------------------------------------------------------------------------------------------

-- transformers leaves out of text_config and vision_config what equals the default of its classes. That is told by its
-- version being there; these are the defaults, the same in all its versions but for the end token, which in early ones
-- was 2.
local SHARED = { hidden_act = "quick_gelu", layer_norm_eps = 1e-5, num_hidden_layers = 12 }
local VISION = { hidden_size = 768, intermediate_size = 3072, num_attention_heads = 12, image_size = 224,
  patch_size = 32, num_channels = 3 }
local TEXT = { hidden_size = 512, intermediate_size = 2048, num_attention_heads = 8, vocab_size = 49408,
  max_position_embeddings = 77, eos_token_id = 49407 }
for _, defaults in ipairs { VISION, TEXT } do
  for name, value in pairs(SHARED) do defaults[name] = value end
end

-- One tower's part of the configuration. Early files repeat it under NAME_dict, which then prevails.
local function part(c, name, defaults)
  local values = c:optional(name .. "_dict")
  if type(values) ~= "table" then values = c:table(name) end
  local inner = checkpoint.fields(c.path, values, name .. ".")
  if c:optional "transformers_version" or inner:optional "transformers_version" then inner.defaults = defaults end
  return inner
end

local function tower(c)
  return { width = c:whole "hidden_size", hidden = c:whole "intermediate_size", depth = c:whole "num_hidden_layers",
    heads = c:whole "num_attention_heads", act = c:activation "hidden_act", eps = c:number "layer_norm_eps" }
end

-- The options of pg.models.clip from the fields of config.json.
function files.read(c)
  local image, words = part(c, "vision_config", VISION), part(c, "text_config", TEXT)
  local vision, text = tower(image), tower(words)
  vision.image, vision.patch = image:whole "image_size", image:whole "patch_size"
  vision.channels = image:whole "num_channels"
  text.vocab, text.context = words:whole "vocab_size", words:whole "max_position_embeddings"
  text.eos = words:whole "eos_token_id"
  return { embed = c:whole "projection_dim", vision = vision, text = text }
end

local function tower_fields(o, kind, embed)
  return { model_type = kind, hidden_size = o.width, intermediate_size = o.hidden, num_hidden_layers = o.depth,
    num_attention_heads = o.heads, hidden_act = o.act, layer_norm_eps = o.eps, projection_dim = embed }
end

-- config.json of a model.
function files.write(model)
  local o = model.config
  local vision = tower_fields(o.vision, "clip_vision_model", o.embed)
  local text = tower_fields(o.text, "clip_text_model", o.embed)
  vision.image_size, vision.patch_size, vision.num_channels = o.vision.image, o.vision.patch, o.vision.channels
  text.vocab_size, text.max_position_embeddings, text.eos_token_id = o.text.vocab, o.text.context, o.text.eos
  return { architectures = { "CLIPModel" }, model_type = "clip", projection_dim = o.embed, vision_config = vision,
    text_config = text, torch_dtype = model.logit_scale:dtype() }
end

-- ---- names ----------------------------------------------------------------------------------------------------------

local BLOCK = {
  { "norm1.*", "layer_norm1.*" },
  { "attention.qkv.*", "self_attn.q_proj.*", "self_attn.k_proj.*", "self_attn.v_proj.*" },
  { "attention.proj.*", "self_attn.out_proj.*" },
  { "norm2.*", "layer_norm2.*" },
  { "mlp.fc1.*", "mlp.fc1.*" },
  { "mlp.fc2.*", "mlp.fc2.*" },
}

-- The names of a model's tensors there.
function files.layout(model)
  local layout, v, t = {}, model.config.vision, model.config.text
  checkpoint.add(layout, "", "", {
    { "logit_scale", "logit_scale" },
    { "visual.projection.weight", "visual_projection.weight" },
    { "text.projection.weight", "text_projection.weight" },
  })
  checkpoint.add(layout, "visual.", "vision_model.", {
    { "class_token", "embeddings.class_embedding", shape = { v.width } },
    { "patch.weight", "embeddings.patch_embedding.weight", shape = { v.width, v.channels, v.patch, v.patch } },
    { "positions", "embeddings.position_embedding.weight", shape = { (v.image / v.patch) ^ 2 + 1, v.width } },
    { "norm_pre.*", "pre_layrnorm.*" }, -- spelt so
    { "norm.*", "post_layernorm.*" },
  })
  checkpoint.add(layout, "text.", "text_model.", {
    { "tokens.weight", "embeddings.token_embedding.weight" },
    { "positions", "embeddings.position_embedding.weight", shape = { t.context, t.width } },
    { "norm.*", "final_layer_norm.*" },
  })
  for i = 1, v.depth do
    checkpoint.add(layout, ("visual.blocks.%d."):format(i), ("vision_model.encoder.layers.%d."):format(i - 1), BLOCK)
  end
  for i = 1, t.depth do
    checkpoint.add(layout, ("text.blocks.%d."):format(i), ("text_model.encoder.layers.%d."):format(i - 1), BLOCK)
  end
  return layout
end

return files
