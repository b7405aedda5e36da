-- models_spec.lua - pg.models against transformers and open_clip: outputs, and the gradient of every parameter, on the
-- small random models that tests/fixtures/make_models.py made; what cannot be loaded is told by name.

local pg = require "perigee"
local lfs = require "lfs"
local json = require "cjson"
local checkpoint = require "perigee.models.checkpoint"

local FIXTURES = "tests/fixtures/models/"
local BARS = { float32 = { forward = 1e-5, backward = 1e-4 }, float64 = { forward = 1e-9, backward = 1e-9 } }

local made = {}
local function folder()
  local path = os.tmpname()
  os.remove(path)
  lfs.mkdir(path)
  made[#made + 1] = path
  return path
end
teardown(function()
  for _, path in ipairs(made) do os.execute("rm -rf '" .. path .. "'") end
end)

local function message(fn, ...)
  local ok, why = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_nil(why:find "\n", why)
  return why
end

-- The greatest difference in terms of the greatest expected value.
local function close(expected, got, what, bar)
  assert.are.same(expected:shape(), got:shape(), what)
  local worst = (expected - got:detach():to "float64"):abs():max():item() / expected:abs():max():item()
  assert.is_true(worst <= bar, ("%s is off by %g of its greatest value"):format(what, worst))
end

local function cubed(t) return (t ^ 3):mean() end

-- A model's outputs, and the gradient of each of its parameters, against a file of make_models.py.
local function check(model, layout, path, dtype)
  local expected, bar = pg.safetensors.load(path), BARS[dtype]
  model:to(dtype):zero_grad()
  local images, depths = expected.images:to(dtype), {}
  while expected["map." .. #depths] do depths[#depths + 1] = #depths end
  local image, maps = model:forward_features(images, depths)
  close(expected.image, image, "the image's feature", bar.forward)
  assert.are.equal(model.width, image:size(2))
  assert.are.equal(model.depth, #depths - 1)
  for i, map in ipairs(maps) do close(expected["map." .. depths[i]], map, "map " .. depths[i], bar.forward) end
  local loss = cubed(maps[2]) + cubed(image)
  if expected.ids then
    local text, logits = model:encode_text(expected.ids), model(images, expected.ids)
    close(expected.text, text, "the text's feature", bar.forward)
    close(expected.logits, logits, "logits", bar.forward)
    loss = loss + cubed(text) + cubed(logits * 0.1)
  end
  loss:backward()
  -- In our layout: the gradient of a key's bias is zero but for rounding, and stands beside the value's here.
  local wanted = { ["embeddings.mask_token"] = model.kept and model.kept.mask_token }
  for name, t in pairs(expected) do
    if name:sub(1, 2) == "d." then wanted[name:sub(3)] = t end
  end
  local reference = pg.models[model.family](model.config):to "float64"
  checkpoint.fill(path, reference, layout, wanted, {})
  local gradients = reference:state_dict()
  for name, p in model:named_parameters() do
    close(gradients[name], assert(p.grad, name), "the gradient of " .. name, bar.backward)
  end
end

-- ---- parity ---------------------------------------------------------------------------------------------------------

local CASES = {
  { "clip_quick_gelu", layout = "clip_files" },
  { "clip_gelu", layout = "clip_files" },
  { "open_clip", layout = "open_clip" },
  { "dinov2", layout = "dinov2" },
  { "dinov2", layout = "dinov2", expected = "dinov2/expected_resized" },
  { "dinov2_swiglu", layout = "dinov2" },
  { "mae", layout = "mae" },
  { "mae_for_pretraining", layout = "mae", expected = "mae/expected" },
}

describe("a model of another library", function()
  for _, case in ipairs(CASES) do
    for _, dtype in ipairs { "float32", "float64" } do
      it(("%s, %s: features, maps and every gradient"):format(case.expected or case[1], dtype), function()
        local model = pg.models.load(FIXTURES .. case[1])
        local layout = require("perigee.models." .. case.layout).layout(model)
        check(model, layout, FIXTURES .. (case.expected or case[1] .. "/expected") .. ".safetensors", dtype)
      end)
    end
  end
end)

-- ---- prompts --------------------------------------------------------------------------------------------------------

describe("prompts", function()
  local images = pg.randn(2, 3, 16, 16)
  local ids = pg.tensor({ { 49, 5, 50, 0, 0 }, { 49, 6, 7, 50, 0 } }, { dtype = "int32" })

  it("are called before every block of the image tower, and may lengthen its tokens", function()
    local model, seen = pg.models.load(FIXTURES .. "clip_gelu"), {}
    local extra = pg.randn(1, 3, 32):requires_grad_(true)
    local function prompts(layer, x)
      seen[#seen + 1] = { layer, x:size(2) }
      return layer == 1 and pg.cat({ x, extra:expand(2, 3, 32) }, 2) or x
    end
    local feature, maps = model:forward_features(images, { 0, 1 }, { prompts = prompts })
    assert.are.same({ { 1, 17 } }, seen)
    assert.are.same({ 17, 20 }, { maps[1]:size(2), maps[2]:size(2) })
    feature:sum():backward()
    assert.is_truthy(extra.grad)
    assert.is_true((feature - model:encode_image(images)):abs():max():item() > 1e-3)
    local same = model:encode_image(images, { prompts = function(_, x) return x end })
    assert.are.equal(0, (same - model:encode_image(images)):abs():max():item())
  end)

  it("after the start of a text equal the same text with these tokens in it", function()
    local model = pg.models.load(FIXTURES .. "clip_quick_gelu"):to "float64"
    local context = pg.randn(2, 2, 24, { dtype = "float64" })
    local function insert(_, x) return pg.cat({ x:narrow(2, 1, 1), context, x:narrow(2, 2, x:size(2) - 1) }, 2) end
    local longer = insert(1, model:embed_text(ids))
    local eos = model:eos_positions(ids)
    assert.are.same({ 3, 4 }, eos:totable())
    local given = model:encode_embedded(longer, eos + 2)
    -- the hook comes after positions were added: take off those of the places before the insertion, add those after
    local p = model.text.positions
    local function hook(layer, x)
      if layer > 1 then return x end
      local bare = x - p:narrow(2, 1, x:size(2))
      local y = insert(1, bare)
      return y + p:narrow(2, 1, y:size(2))
    end
    close(given:detach(), model:encode_text(ids, { prompts = hook }), "prompts as a hook", 1e-12)
    close(model:encode_text(ids):detach(), model:encode_embedded(model:embed_text(ids), { 3, 4 }), "no prompts", 1e-12)
  end)

  it("that are none are told", function()
    local model = pg.models.load(FIXTURES .. "clip_gelu")
    assert.matches("prompts(1, x) must return tokens (2, T, 32), got nil",
      message(model.encode_image, model, images, { prompts = function() end }), 1, true)
    assert.matches("unknown option 'prompt' (did you mean 'prompts'?)",
      message(model.encode_image, model, images, { prompt = 1 }), 1, true)
  end)
end)

describe("CLIP in the place of a vit", function()
  it("gives its image feature, and every regulariser takes it", function()
    local pretrained = pg.models.load(FIXTURES .. "clip_gelu"):requires_grad_(false)
    local images, labels = pg.randn(8, 3, 16, 16), pg.tensor({ 1, 2, 3, 1, 2, 3, 1, 2 }, { dtype = "int32" })
    assert.are.equal(0, (pretrained(images) - pretrained:encode_image(images)):abs():max():item())
    for name, options in pairs { l2sp = {}, ldifs = {}, fda = { k = 3 }, proxy_fda = { k = 3, batch = 8 } } do
      local model = pg.models.load(FIXTURES .. "clip_gelu")
      local regularizer = pg.regularize.new(name, pretrained, options)
      local features, tokens = model:forward_features(images, regularizer.depths)
      local loss = pg.cross_entropy(pg.models.head(model.width, 3)(features), labels)
        + regularizer.loss { model = model, images = images, features = features, tokens = tokens }
      loss:backward()
      assert.is_truthy(model.visual.class_token.grad, name)
    end
  end)
end)

describe("DINOv2", function()
  it("takes images of any size that patches tile, and no others", function()
    local model = pg.models.load(FIXTURES .. "dinov2")
    assert.are.same({ 1, 32 }, model(pg.randn(1, 3, 8, 28)):shape())
    assert.matches("dinov2: takes images (B, 3, H, W), H and W multiples of 4, got (1, 3, 18, 16)",
      message(model, pg.randn(1, 3, 18, 16)), 1, true)
  end)

  it("resamples to the size itself where the offset is 0, as PyTorch by size", function()
    local model = pg.models.dinov2 { image = 8, patch = 4, width = 1, heads = 1, depth = 1, offset = 0 }
    model:requires_grad_(false)
    model.positions:copy_(pg.tensor { { { 0 }, { 1 }, { 2 }, { 3 }, { 4 } } })
    model.class_token:zero_()
    -- torch.nn.functional.interpolate([[1, 2], [3, 4]], size=(5, 3), mode="bicubic")
    local expected = pg.tensor({ 0, 0.6926944, 1.2795, 1.8663056, 1.0771944, 1.664, 2.2508056, 1.9131944, 2.5, 3.0868056,
      2.7491944, 3.336, 3.9228056, 3.1336944, 3.7205, 4.3073056 }, { dtype = "float64" })
    close(expected, model:embed(pg.zeros(1, 3, 20, 12)):reshape(16), "positions", 1e-6)
  end)
end)

describe("texts", function()
  local function int32(rows) return pg.tensor(rows, { dtype = "int32" }) end
  local first, legacy = pg.models.load(FIXTURES .. "clip_gelu"), pg.models.load(FIXTURES .. "clip_quick_gelu")

  it("end at the first end token, or where an early configuration says so at the greatest number", function()
    local ids = int32 { { 49, 50, 61, 50 }, { 49, 3, 50, 0 } }
    assert.are.same({ 2, 3 }, first:eos_positions(ids):totable())
    assert.are.same({ 3, 3 }, legacy:eos_positions(ids):totable())
  end)

  it("that cannot be read are one clear line", function()
    local function fails(expected, method, ...)
      assert.matches(expected, message(first[method], first, ...), 1, true)
    end
    fails("text 2 has no end token 50", "encode_text", int32 { { 49, 50 }, { 49, 3 } })
    fails("there is no token 62: they run from 0 to 61", "encode_text", int32 { { 62, 50 } })
    fails("there is no token -1", "encode_text", int32 { { -1, 50 } })
    fails("T at most 10, got int32 (1, 11)", "encode_text", pg.zeros(1, 11, { dtype = "int32" }))
    fails("got float32 (1, 2)", "encode_text", pg.zeros(1, 2))
    fails("texts of 4 tokens end at 1 to 4, not at 5", "encode_embedded", pg.randn(2, 4, 24), { 1, 5 })
    fails("needs the ends of 2 texts", "encode_embedded", pg.randn(2, 4, 24), { 1 })
    fails("embedded texts (C, T, 24), T at most 10, got (2, 4)", "encode_embedded", pg.zeros(2, 4), { 1, 1 })
  end)
end)

-- ---- files ----------------------------------------------------------------------------------------------------------

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

-- A fixture copied, its configuration and tensors changed by functions.
local function changed(name, edit_config, edit_tensors)
  local path, prefix = folder(), name == "open_clip" and "open_clip_" or ""
  local config = checkpoint.read_json(FIXTURES .. name .. "/" .. prefix .. "config.json")
  local tensors = pg.safetensors.load(FIXTURES .. name .. "/" .. prefix .. "model.safetensors")
  if edit_config then edit_config(config) end
  if edit_tensors then edit_tensors(tensors) end
  write(path .. "/" .. prefix .. "config.json", json.encode(config))
  pg.safetensors.save(path .. "/" .. prefix .. "model.safetensors", tensors, { format = "pt" })
  return path
end

local function same_tensors(a, b)
  local expected, got = pg.safetensors.load(a .. "/model.safetensors"), pg.safetensors.load(b .. "/model.safetensors")
  for name, t in pairs(expected) do
    local there = assert(got[name], name)
    assert.are.same(t:shape(), there:shape(), name)
    assert.are.equal(0, (t - there):abs():max():item(), name)
  end
  for name in pairs(got) do assert.is_truthy(expected[name], name) end
end

describe("models.pixels", function()
  local images = pg.full({ 1, 4, 4, 3 }, 51, { dtype = "uint8" })

  it("brings pictures to the side of the image tower and scales them as the file beside the weights says", function()
    local path = folder()
    os.execute(("cp %sclip_gelu/*.json %sclip_gelu/model.safetensors %s"):format(FIXTURES, FIXTURES, path))
    pg.util.write_file(path .. "/preprocessor_config.json", [[{"image_processor_type": "CLIPImageProcessor",
      "image_mean": [0.1, 0.2, 0], "image_std": [0.1, 1, 2]}]])
    local model = pg.models.load(path)
    for _, tower in ipairs { model, model.visual } do
      local x, side = pg.models.pixels(tower, images), model.config.vision.image
      assert.are.same({ 1, 3, side, side }, x:shape())
      for c, want in ipairs { 1, 0, 0.1 } do assert.is_true(math.abs(x:get(1, c, 3, 3) - want) < 1e-6) end
    end
    pg.util.write_file(path .. "/preprocessor_config.json", "{}")
    local why = message(pg.models.pixels, pg.models.load(path), images)
    assert.is_truthy(why:find("preprocessor_config.json: image_processor_type is missing", 1, true), why)
  end)

  it("scales as the family does where there is no such file, and as to_float what was never in one", function()
    local path = folder()
    os.execute(("cp %smae/*.json %smae/model.safetensors %s"):format(FIXTURES, FIXTURES, path))
    local x = pg.models.pixels(pg.models.load(path), images)
    local again = folder() .. "/saved"
    pg.models.save(again, (pg.models.load(path)))
    assert.is_true((pg.models.pixels(pg.models.load(again), images) - x):abs():max():item() < 1e-6)
    pg.util.write_file(path .. "/preprocessor_config.json", [[{"image_processor_type": "CLIPImageProcessor",
      "rescale_factor": 0.5, "image_mean": 1, "image_std": 2}]])
    assert.is_true(math.abs(pg.models.pixels(pg.models.load(path), images):get(1, 1, 1, 1) - (51 * 0.5 - 1) / 2) < 1e-4)
    for c, want in ipairs { (0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225 } do
      assert.is_true(math.abs(x:get(1, c, 3, 3) - want) < 1e-6)
    end
    local plain = pg.models.vit { image = 4, patch = 2, width = 8, depth = 1, heads = 1 }
    assert.are.equal(0, (pg.models.pixels(plain, images) - pg.data.to_float(images)):abs():max():item())
  end)
end)

describe("models.find", function()
  it("is the path itself, or one beside the recipe, or a line that names both", function()
    assert.are.equal(FIXTURES .. "mae", pg.models.find(FIXTURES .. "mae", "recipes/"))
    assert.are.equal(FIXTURES .. "mae", pg.models.find("mae", FIXTURES))
    local why = message(pg.models.find, "nowhere", "recipes/")
    assert.is_truthy(why:find("model=nowhere: neither nowhere nor recipes/nowhere is a model's file", 1, true), why)
  end)
end)

describe("models.save", function()
  it("writes the names, shapes and values that transformers wrote", function()
    for _, name in ipairs { "clip_quick_gelu", "clip_gelu", "dinov2", "dinov2_swiglu", "mae" } do
      local path, model = folder() .. "/new", pg.models.load(FIXTURES .. name)
      pg.models.save(path, model, { note = "a copy" })
      same_tensors(FIXTURES .. name, path)
      local back, card = pg.models.load(path)
      assert.are.same(model.config, back.config)
      assert.are.equal("a copy", card.note)
    end
  end)
end)

describe("models.load", function()
  local function fails(path, ...)
    local said = message(pg.models.load, path)
    for _, part in ipairs { ... } do assert.is_truthy(said:find(part, 1, true), said) end
  end

  it("names tensors that are missing, extra and mis-shaped, and only counts many", function()
    fails(changed("clip_gelu", nil, function(t)
      t["vision_model.pre_layrnorm.bias"] = nil
      t["surplus"] = pg.zeros(2)
      t["text_projection.weight"] = pg.zeros(3, 24)
    end), "/model.safetensors: does not fit its configuration: missing: vision_model.pre_layrnorm.bias; "
      .. "extra: surplus; mis-shaped: text_projection.weight is (3, 24), should be (16, 24)")
    fails(changed("clip_gelu", function(c) c.vision_config.num_hidden_layers = 2 end),
      "missing: vision_model.encoder.layers.1.layer_norm1.weight, ", " and 12 more")
  end)

  it("passes over position_ids", function()
    pg.models.load(changed("clip_gelu", nil, function(t)
      t["text_model.embeddings.position_ids"] = pg.arange(10):reshape(1, 10)
    end))
  end)

  it("names a field that is absent or makes no sense, and guesses neither activation nor epsilon", function()
    local function full(c) -- without its version, what is absent has no known default
      c.transformers_version = nil
      for _, part in ipairs { c.vision_config, c.text_config } do part.layer_norm_eps = 1e-5 end
      c.vision_config.num_channels = 3
    end
    pg.models.load(changed("clip_gelu", full))
    for _, name in ipairs { "hidden_act", "layer_norm_eps", "hidden_size" } do
      fails(changed("clip_gelu", function(c)
        full(c)
        c.text_config[name] = nil
      end), "/config.json: lacks the field text_config." .. name)
    end
    fails(changed("clip_gelu", function(c) c.projection_dim = nil end), "/config.json: lacks the field projection_dim")
    fails(changed("clip_gelu", function(c) c.vision_config = nil end), "/config.json: lacks the field vision_config")
    fails(changed("clip_gelu", function(c) c.vision_config.patch_size = "4" end),
      "vision_config.patch_size must be a whole number, got 4")
    fails(changed("clip_gelu", function(c) c.vision_config.patch_size = 5 end), "patches of 5 do not tile images of 16")
    fails(changed("clip_gelu", function(c) c.text_config.hidden_act = "gelu_new" end),
      "text_config.hidden_act is 'gelu_new': the activations known are")
  end)

  it("asks DINOv2 and MAE for every field", function()
    for _, name in ipairs { "mlp_ratio", "use_swiglu_ffn", "layer_norm_eps", "hidden_act", "layerscale_value" } do
      fails(changed("dinov2", function(c) c[name] = nil end), "/config.json: lacks the field " .. name)
    end
    for _, name in ipairs { "layer_norm_eps", "hidden_act", "intermediate_size" } do
      fails(changed("mae", function(c) c[name] = nil end), "/config.json: lacks the field " .. name)
    end
    fails(changed("dinov2", function(c) c.use_swiglu_ffn = "no" end), "use_swiglu_ffn must be true or false, got no")
    fails(changed("mae", function(c) c.qkv_bias = false end), "qkv_bias = false is not supported, only true")
  end)

  it("refuses what open_clip can do and pg.models.clip cannot", function()
    fails(changed("open_clip", function(c) c.model_cfg.vision_cfg.timm_model_name = "resnet50" end),
      "/open_clip_config.json: model_cfg.vision_cfg.timm_model_name = resnet50 is not supported")
    fails(changed("open_clip", function(c) c.model_cfg.text_cfg.pool_type = "last" end), "pool_type = last is not")
    fails(changed("open_clip", function(c) c.model_cfg.custom_text = true end), "model_cfg.custom_text = true is not")
    fails(changed("open_clip", function(c) c.model_cfg.vision_cfg.layers = { 1, 2 } end),
      "model_cfg.vision_cfg.layers must be a whole number, got a list or an object")
    fails(changed("open_clip", function(c) c.model_cfg.text_cfg.heads = nil end),
      "/open_clip_config.json: lacks the field model_cfg.text_cfg.heads")
    local model = pg.models.load(changed("open_clip", function(c)
      c.model_cfg.quick_gelu, c.model_cfg.text_cfg.pool_type, c.model_cfg.custom_text = nil, "argmax", false
    end))
    assert.are.equal("gelu", model.config.vision.act)
  end)

  it("reads OpenAI's names from a file, by the configuration beside it", function()
    local path = changed("open_clip", nil, function(t)
      for _, name in ipairs { "input_resolution", "context_length", "vocab_size" } do t[name] = pg.zeros {} end
    end)
    assert.are.equal(16, pg.models.load(path .. "/open_clip_model.safetensors").width)
    os.remove(path .. "/open_clip_config.json")
    fails(path, "/open_clip_model.safetensors: needs open_clip_config.json, which is not in " .. path)
    write(path .. "/config.json", "{}")
    fails(path, "needs open_clip_config.json")
  end)

  it("takes an early file's text_config_dict before text_config", function()
    local model = pg.models.load(changed("clip_gelu", function(c)
      c.text_config_dict = c.text_config
      c.text_config = { hidden_size = 8 }
      c.vision_config_dict = json.null
    end))
    assert.are.equal(24, model.config.text.width)
  end)

  it("reads shards by their index", function()
    local path = changed("mae")
    local tensors = pg.safetensors.load(path .. "/model.safetensors")
    os.remove(path .. "/model.safetensors")
    pg.safetensors.save_sharded(path, tensors, { largest = 3e4 })
    local whole, images = pg.models.load(FIXTURES .. "mae"), pg.randn(1, 3, 16, 16)
    assert.are.equal(0, (whole(images) - pg.models.load(path)(images)):abs():max():item())
  end)

  it("names an architecture that is not known, and those that are", function()
    fails(changed("clip_gelu", function(c) c.architectures = { "BertModel" } end),
      "/config.json: the architecture 'BertModel' is not known; known are CLIPModel")
    fails(changed("clip_gelu", function(c) c.architectures, c.model_type = nil, nil end), "the architecture (absent)")
    pg.models.load(changed("clip_gelu", function(c) c.architectures = nil end))
  end)

  it("says what a folder lacks", function()
    fails(folder(), ": has none of model.safetensors, model.safetensors.index.json, ")
    local path = folder()
    write(path .. "/config.json", "{")
    pg.safetensors.save(path .. "/model.safetensors", { a = pg.zeros(1) })
    fails(path, "/config.json: not a JSON object")
    os.remove(path .. "/config.json")
    fails(path, "/model.safetensors: needs config.json, which is not in " .. path)
    fails(path .. "/absent", "cannot read " .. path .. "/absent")
  end)
end)
