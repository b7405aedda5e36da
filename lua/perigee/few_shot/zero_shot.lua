-- zero_shot.lua - CLIP as it is: every class is the feature of its sentence.
--
--   logits = exp(s) cos(f, t_c),   t_c = text("a photo of a {c}")

return {
  help = "CLIP as it is, a sentence a class; nothing is trained",
  source = "CLIP: Radford et al., arXiv 2103.00020",
  options = {
    { "templates", "prompt", choices = { "prompt", "list" },
      help = "prompt: the task's one sentence; list: the mean over many" },
  },
  new = function(task, o)
    return {
      classes = function(names, prompt)
        return { texts = o.templates == "list" and task:ensemble(names) or task:zero_shot(names, prompt) }
      end,
      logits = function(batch, set) return task:cosines(batch.features, set.texts) end,
    }
  end,
}
