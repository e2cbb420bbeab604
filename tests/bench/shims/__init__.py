"""Stand-ins for functions of peers, made of ours: what `tests.bench.peer_tests` runs."""
