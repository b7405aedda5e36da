-- Sizes around the edges of blocks for pad.cu; margins of first, middle and last dimensions, and x empty.
return {
  pad = { "{x = randn(N), pads = {1, 2}}", "{x = randn(2, N), pads = {0, 0, 3, 0}, value = 1.5}",
    "{x = randn(2, 2, N), pads = {1, 1}}", "{x = ints(9, N, 3), pads = {0, 1, 2, 0}, value = -1}",
    "{x = bytes(9, 2, N, 2), pads = {0, 0, 1, 1}, value = 255}", "{x = randn(0, 3), pads = {1, 1}}" },
}
