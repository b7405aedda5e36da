-- open_clip.lua - CLIP as OpenAI and open_clip name its tensors, with the architecture from open_clip_config.json
-- (docs/method.md, section 6.2).

local cjson = require "cjson"
local util = require "perigee.util"
local checkpoint = require "perigee.models.checkpoint"
local clip = require "perigee.models.clip"

local open_clip = { new = clip.new, -- the last four are sizes that OpenAI's own files carry along
  ignored = { "%.?attn_mask$", "^input_resolution$", "^context_length$", "^vocab_size$" } }

-- ---- open_clip_config.json ------------------------------------------------------------------------------------------

local EPS = 1e-5 -- of PyTorch's LayerNorm: open_clip has no field for it
local LEGACY_EOS = 2 -- the text's feature is at its greatest number

-- Fields that are read, and values of others that ask for nothing else than what pg.models.clip is; false and null ask
-- for nothing either.
local MODEL = { embed_dim = true, vision_cfg = true, text_cfg = true, quick_gelu = true, init_logit_scale = true }
local VISION = { image_size = true, layers = true, width = true, patch_size = true, head_width = true, mlp_ratio = true,
  patch_dropout = true, pool_type = "tok", pos_embed_type = "learnable" }
local TEXT = { context_length = true, vocab_size = true, width = true, heads = true, layers = true, mlp_ratio = true,
  pool_type = "argmax", proj_type = "linear", pad_id = true }

local function only_known(c, known)
  for name, value in pairs(c.values) do
    util.check(known[name] == true or known[name] == value or not value or value == cjson.null,
      "%s: %s%s = %s is not supported", c.path, c.prefix, name,
      type(value) == "table" and "(a list or an object)" or tostring(value))
  end
end

-- The options of pg.models.clip from the fields of open_clip_config.json. What open_clip takes for absent fields is the
-- same in all its versions: no quick_gelu, heads of 64, MLPs of ratio 4.
function open_clip.read(c)
  local function part(from, name, prefix, defaults, known)
    local inner = checkpoint.fields(c.path, from:table(name), prefix .. name .. ".", defaults)
    only_known(inner, known)
    return inner
  end
  local m = part(c, "model_cfg", "", { quick_gelu = false }, MODEL)
  local v = part(m, "vision_cfg", "model_cfg.", { head_width = 64, mlp_ratio = 4 }, VISION)
  local t = part(m, "text_cfg", "model_cfg.", { mlp_ratio = 4 }, TEXT)
  local act = m:flag "quick_gelu" and "quick_gelu" or "gelu"
  local function tower(inner)
    local width = inner:whole "width"
    return { width = width, depth = inner:whole "layers", hidden = math.floor(width * inner:number "mlp_ratio"),
      act = act, eps = EPS }
  end
  local vision, text = tower(v), tower(t)
  vision.image, vision.patch = v:whole "image_size", v:whole "patch_size"
  vision.heads = math.floor(vision.width / v:whole "head_width")
  text.context, text.vocab, text.heads = t:whole "context_length", t:whole "vocab_size", t:whole "heads"
  text.eos = LEGACY_EOS
  return { embed = m:whole "embed_dim", vision = vision, text = text }
end

-- ---- names ----------------------------------------------------------------------------------------------------------

local BLOCK = {
  { "norm1.*", "ln_1.*" },
  { "attention.qkv.*", "attn.in_proj_*" },
  { "attention.proj.*", "attn.out_proj.*" },
  { "norm2.*", "ln_2.*" },
  { "mlp.fc1.*", "mlp.c_fc.*" },
  { "mlp.fc2.*", "mlp.c_proj.*" },
}

-- The names of a model's tensors there.
function open_clip.layout(model)
  local layout, v, t = {}, model.config.vision, model.config.text
  checkpoint.add(layout, "", "", {
    { "logit_scale", "logit_scale" },
    { "visual.class_token", "visual.class_embedding", shape = { v.width } },
    { "visual.patch.weight", "visual.conv1.weight", shape = { v.width, v.channels, v.patch, v.patch } },
    { "visual.positions", "visual.positional_embedding", shape = { (v.image / v.patch) ^ 2 + 1, v.width } },
    { "visual.norm_pre.*", "visual.ln_pre.*" },
    { "visual.norm.*", "visual.ln_post.*" },
    { "visual.projection.weight", "visual.proj", transposed = true },
    { "text.tokens.weight", "token_embedding.weight" },
    { "text.positions", "positional_embedding", shape = { t.context, t.width } },
    { "text.norm.*", "ln_final.*" },
    { "text.projection.weight", "text_projection", transposed = true },
  })
  for i = 1, v.depth do
    checkpoint.add(layout, ("visual.blocks.%d."):format(i), ("visual.transformer.resblocks.%d."):format(i - 1), BLOCK)
  end
  for i = 1, t.depth do
    checkpoint.add(layout, ("text.blocks.%d."):format(i), ("transformer.resblocks.%d."):format(i - 1), BLOCK)
  end
  return layout
end

return open_clip
