-- Databases and queries around the edges of tiles and rounds; equal rows; several chunks of the database (width 4,100),
-- several rounds of queries (515), several blocks a query (5,000 rows), and k of more than 1,024.
return {
  knn = {
    "{queries = randn(3, 5), database = randn(N, 5), k = math.max(1, math.floor(N / 2)), metric = 'cosine'}",
    "{queries = randn(math.min(N, 129), 4), database = randn(40, 4), k = 7, metric = 'ip'}",
    "{queries = randn(5, 8), database = randn(N, 8), k = math.max(1, math.floor(N / 9)), metric = 'l2'}",
    "{queries = randn(7, N), database = randn(70, N), k = 33, metric = 'l2', exclude_self = true}",
    "{queries = ints(2, 9, 4):to('float32'), database = ints(2, N, 4):to('float32'), k = N, metric = 'ip'}",
    "{queries = ints(2, 9, 4):to('float32'), database = ints(2, N + 9, 4):to('float32'), k = 9, metric = 'l2', "
      .. "exclude_self = true}",
    "{queries = ints(2, N == 1 and 515 or 1, 3):to('float32'), database = ints(2, N == 1 and 70 or 3, 3):to('float32'), "
      .. "k = 2, metric = 'ip', exclude_self = true}",
    "{queries = ints(2, 2, N == 1 and 4100 or 1):to('float32'), k = 3, metric = 'ip', exclude_self = true, "
      .. "database = ints(2, N == 1 and 1100 or 4, N == 1 and 4100 or 1):to('float32')}",
    "{queries = randn(2, 3), database = randn(N == 1 and 5000 or 9, 3), k = N == 33 and 8 or 5, metric = 'cosine'}",
    "{queries = randn(2, 3), database = randn(N == 1 and 1500 or N == 31 and 2500 or 9, 3), "
      .. "k = N == 1 and 1100 or N == 31 and 1024 or 4, metric = 'cosine', exclude_self = true}",
    "{queries = randn(2, 3), database = randn(N == 1 and 1501 or 9, 3), k = N == 1 and 1400 or 4, metric = 'l2'}",
    "{queries = zeros(0, 3), database = randn(9, 3), k = 4}",
  },
}
