"""An answer to each exercise that its check must refuse: near misses, by notebook."""

WRONG = {
    "01": {
        1: "rank_of_sums = 10",
        2: "def three_profiles(x):\n    return x[:, 0, 0], x[0, :, 0], x[0, 0, :]",
        3: "another = 2 * product",
    },
    "02": {
        1: "def unfold(tensor, mode):\n    return tensor.reshape(tensor.shape[mode], -1)",
        2: "frugal_rank = (7, 6, 6)",
        3: "def largest_error(values, ranks):\n    return np.sqrt(tails[5].max()) / size",
    },
    "03": {
        1: "largest_rank = 7",
        2: "very_near = in_two_terms(1e3)",
        3: "n_products = 16**3",
    },
}
