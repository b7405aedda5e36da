-- Tokens and proxies around the edges of the tiles that turn; masks that leave something, and nothing.
return {
  proxy_pool = {
    "{logits = randn(2, N, 3), mask = ones(2, N), x = randn(N, 4)}",
    "{logits = randn(2, 33, math.min(N, 129)), mask = uniform(0, 2, 2, 33):to('int32'):to('float32'), x = randn(33, 3)}",
    "{logits = randn(2, N, 1), mask = zeros(2, N), x = randn(N, 2)}",
    "{logits = zeros(0, 4, 2), mask = zeros(0, 4), x = randn(4, 2)}",
  },
}
