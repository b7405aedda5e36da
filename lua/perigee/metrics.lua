-- metrics.lua - what a representation is worth: probes, calibration, drift (docs/method.md, protocols).

local util = require "perigee.util"

local metrics = {}
local function pg() return require "perigee" end

--- Share of rows whose greatest logit is the label.
-- @param logits  (N, C) float
-- @param labels  (N) int32 from 1
-- @return a number in 0..1
function metrics.accuracy(logits, labels)
  local right, predicted, wanted = 0, logits:detach():argmax(2):totable(), labels:totable()
  for i, label in ipairs(wanted) do
    if predicted[i] == label then right = right + 1 end
  end
  return right / #wanted
end

--- Expected calibration error over equal bins of confidence (Guo et al., arXiv 1706.04599): the mean, over images, of the
-- distance between a bin's confidence and its accuracy.
-- @param logits  (N, C) float
-- @param labels  (N) int32 from 1
-- @param options {bins = 15}
-- @return a number in 0..1
function metrics.ece(logits, labels, options)
  options = util.options("metrics.ece", options, { bins = 15 })
  local probability = logits:detach():softmax(2)
  local confidence, predicted = probability:max(2):totable(), probability:argmax(2):totable()
  local count, sure, right = {}, {}, {}
  for i, label in ipairs(labels:totable()) do
    local bin = math.min(options.bins, math.max(1, math.ceil(confidence[i] * options.bins)))
    count[bin] = (count[bin] or 0) + 1
    sure[bin] = (sure[bin] or 0) + confidence[i]
    right[bin] = (right[bin] or 0) + (predicted[i] == label and 1 or 0)
  end
  local total = 0
  for bin in pairs(count) do total = total + math.abs(sure[bin] - right[bin]) end
  return total / labels:numel()
end

-- Trains a head full-batch on features of length one. @return the head, which normalises by itself
local function train_head(features, labels, classes, lr, steps, decay)
  local p = pg()
  local head = p.models.head(features:size(2), classes):to(features:device())
  local opt = p.optim.AdamW(head:parameters(), { lr = lr, weight_decay = decay })
  for _ = 1, steps do
    opt:zero_grad()
    p.scope(function() p.cross_entropy(head.linear(features), labels):backward() end) -- its buffers are the next step's
    opt:step()
  end
  return head
end

--- Linear probe (docs/method.md, section 2.4): full-batch AdamW on a normalising linear head; where several learning rates
-- are given, one is chosen on a 90/10 split of the training set, then the head is fitted again on all of it. The split and
-- the heads come from the global generator.
-- @param train, train_labels, test, test_labels  (N, D) features and (N) int32 labels from 1
-- @param options {steps = 1000, lrs = {0.01, 0.05, 0.1, 0.5, 1}, weight_decay = 0.01}
-- @return test accuracy in 0..1, and {head, lr, ece}
-- @raises when features and labels differ in number
function metrics.linear_probe(train, train_labels, test, test_labels, options)
  options = util.options("metrics.linear_probe", options, { steps = 1000, lrs = { 0.01, 0.05, 0.1, 0.5, 1 },
    weight_decay = 0.01 })
  local p, n = pg(), train:size(1)
  util.check(n == train_labels:numel() and test:size(1) == test_labels:numel(),
    "linear_probe: %d features for %d labels (train), %d for %d (test)", n, train_labels:numel(), test:size(1),
    test_labels:numel())
  local classes = math.max(train_labels:to("float32"):max():item(), test_labels:to("float32"):max():item())
  train, test = train:detach():normalize(), test:detach():normalize()
  local best_lr, best = options.lrs[1], -1
  if #options.lrs > 1 then
    local order = p.randperm(n)
    local held = math.max(1, math.floor(n / 10))
    local validation, rest = order:narrow(1, 1, held), order:narrow(1, held + 1, n - held)
    local x, y = train:index(1, rest), train_labels:index(1, rest)
    local vx, vy = train:index(1, validation), train_labels:index(1, validation)
    for _, lr in ipairs(options.lrs) do
      local head = train_head(x, y, classes, lr, options.steps, options.weight_decay)
      local score = p.no_grad(function() return metrics.accuracy(head(vx), vy) end)
      if score > best then best_lr, best = lr, score end
    end
  end
  local head = train_head(train, train_labels, classes, best_lr, options.steps, options.weight_decay)
  local logits = p.no_grad(function() return head(test) end)
  return metrics.accuracy(logits, test_labels), { head = head, lr = best_lr, ece = metrics.ece(logits, test_labels) }
end

--- Zero-shot accuracy (Radford et al., arXiv 2103.00020): each image gets the class whose embedding is nearest by cosine.
-- @param features    (N, D) image features
-- @param embeddings  (C, D) one a class, such as the text features of its prompt
-- @param labels      (N) int32 from 1
-- @return a number in 0..1
-- @raises when the widths differ
function metrics.zero_shot(features, embeddings, labels)
  util.check(features:size(2) == embeddings:size(2), "zero_shot: features of width %d for class embeddings of width %d",
    features:size(2), embeddings:size(2))
  return pg().no_grad(function()
    return metrics.accuracy(features:normalize():matmul(embeddings:normalize():t()), labels)
  end)
end

--- Features of many images, 256 at a time, without gradients; the processes of a run share the work.
-- @param encode  function: (n, ...) -> (n, D)
-- @param images  (N, ...)
-- @return (N, D)
function metrics.encode(encode, images)
  local p = pg()
  return p.distributed.map(images, function(own)
    local pieces, n = {}, own:size(1)
    for start = 1, n, 256 do
      local part = own:narrow(1, start, math.min(256, n - start + 1)):contiguous()
      pieces[#pieces + 1] = p.no_grad(function() return encode(part) end)
    end
    return p.cat(pieces, 1)
  end)
end

--- Linear-probe accuracy of a task from data.task: trained on its train part and tested on its test part; with `folds`,
-- for tasks of few images, cross-validated over all of them, so that each is tested once (the rate is chosen in the first
-- fold). Draws from a generator state of its own: every model gets the same splits and heads, and a run's own draws stay.
-- @param encode   function: uint8 (N, H, W, 3) -> float features (N, D)
-- @param task     {train, test, val, folds} from data.task
-- @param options  as metrics.linear_probe, and seed (default 0)
-- @return accuracy in 0..1, and {lr = the rate that was chosen, features, labels = of every image that was tested}
function metrics.probe_task(encode, task, options)
  local probe = {}
  for key, value in pairs(options or {}) do probe[key] = value end
  local p, seed = pg(), probe.seed or 0
  probe.seed = nil
  local kept = p.rng_state()
  p.seed(seed)
  local accuracy, lr, features, labels
  if not task.folds then
    features, labels = metrics.encode(encode, task.test.images), task.test.labels
    local fitted
    accuracy, fitted = metrics.linear_probe(metrics.encode(encode, task.train.images), task.train.labels, features, labels,
      probe)
    lr = fitted.lr
  else
    features = metrics.encode(encode, p.cat({ task.train.images, task.val.images, task.test.images }, 1))
    labels = p.cat({ task.train.labels, task.val.labels, task.test.labels }, 1)
    local n, order = labels:numel(), p.randperm(labels:numel())
    local right = 0
    for fold = 1, task.folds do
      local from, to = math.floor(n * (fold - 1) / task.folds), math.floor(n * fold / task.folds)
      local test = order:narrow(1, from + 1, to - from):contiguous()
      local train = p.cat({ order:narrow(1, 1, from), order:narrow(1, to + 1, n - to) }, 1)
      local share, fitted = metrics.linear_probe(features:index(1, train), labels:index(1, train),
        features:index(1, test), labels:index(1, test), probe)
      lr = fitted.lr
      probe.lrs = { lr }
      right = right + share * (to - from)
    end
    accuracy = right / n
  end
  p.rng_state(kept)
  return accuracy, { lr = lr, features = features, labels = labels }
end

--- The accuracy of always saying the commonest class. @param labels (N) int32 @return a number in 0..1
function metrics.chance(labels)
  local count, most = {}, 0
  for _, c in ipairs(labels:totable()) do
    count[c] = (count[c] or 0) + 1
    most = math.max(most, count[c])
  end
  return most / labels:numel()
end

--- kNN probe: the vote of the k nearest training features by cosine; of equal votes the nearer neighbour's wins.
-- @param train, train_labels, test, test_labels  (N, D) features and (N) int32 labels from 1
-- @param options {k = 10}
-- @return test accuracy in 0..1
function metrics.knn_probe(train, train_labels, test, test_labels, options)
  options = util.options("metrics.knn_probe", options, { k = 10 })
  local _, index = pg().knn(test:detach(), train:detach(), { k = options.k, metric = "cosine" })
  local labels, right = train_labels:totable(), 0
  local wanted = test_labels:totable()
  for i, row in ipairs(index:totable()) do
    local votes, best = {}, nil
    for _, j in ipairs(row) do votes[labels[j]] = (votes[labels[j]] or 0) + 1 end
    for _, j in ipairs(row) do
      if not best or votes[labels[j]] > votes[best] then best = labels[j] end
    end
    if best == wanted[i] then right = right + 1 end
  end
  return right / #wanted
end

--- Mean Euclidean distance between the features of the same images. @param before, after (N, D) @return a number
function metrics.l2_drift(before, after) return pg().no_grad(function() return (after - before):norm(2):mean():item() end) end

--- Change of linear-probe accuracy on every task but the one fine-tuned on (docs/method.md, section 2.4).
-- @param before, after  task name -> accuracy
-- @param tuned          the task that was fine-tuned
-- @return the mean, and task -> change
-- @raises when there is no other task
function metrics.delta_lp(before, after, tuned)
  local sum, n, each, tasks = 0, 0, {}, {}
  for task in pairs(before) do tasks[#tasks + 1] = task end
  table.sort(tasks) -- a sum in one order, whatever the table's
  for _, task in ipairs(tasks) do
    if task ~= tuned then
      each[task] = after[task] - before[task]
      sum, n = sum + each[task], n + 1
    end
  end
  util.check(n > 0, "delta_lp: there is no task beside '%s'", tostring(tuned))
  return sum / n, each
end

for _, part in ipairs { "sinkhorn", "otdd", "continual", "logistic" } do require("perigee.metrics." .. part)(metrics) end

return metrics
