-- For softmax.cu and lines.h: rows over the edges of packs, of a warp's and of a block's registers, and streamed; a
-- dimension in the middle with few and with many neighbours.
local templates = {
  "{x = randn(3, N)}",
  "{x = randn(N, 3), dim = 1}",
  "{x = randn(2, 3, N), dim = 2}",
  "{x = randn(9, N, 2), dim = 2}",
  "{x = randn(1, N + 500)}",
  "{x = randn(1, N * 7 + 1)}",
  "{x = randn(300, 40), dim = 1}",
  "{x = randn(N + 400, 33), dim = 1}",
  "{x = randn(1, 16 * N + 1)}",
  "{x = zeros(0, N)}",
  "{x = zeros(N, 0)}",
}
return { softmax = templates, log_softmax = { templates[1], templates[3], templates[4], templates[9] } }
