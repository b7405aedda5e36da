-- Planes of whole packs and others; one channel, three, and more.
return {
  normalize_image = {
    "{x = bytes(256, 2, 1, N, 3), mean = uniform(0.4, 0.6, 3):to('float32'), std = uniform(0.2, 0.3, 3):to('float32')}",
    "{x = bytes(256, 3, 4, N, 1), mean = uniform(0.4, 0.6, 1):to('float32'), std = uniform(0.2, 0.3, 1):to('float32')}",
    "{x = bytes(256, 1, 2, N, 5), mean = uniform(0.4, 0.6, 5):to('float32'), std = uniform(0.2, 0.3, 5):to('float32')}",
    "{x = bytes(256, 0, 2, N, 3), mean = zeros(3):to('float32'), std = ones(3):to('float32')}",
  },
}
