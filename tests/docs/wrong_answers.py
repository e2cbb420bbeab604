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
    "04": {
        1: "order = range(8)",
        2: "n_of_sums = train_of_sums().n_params + 1",
        3: "def rain_on(train, k):\n    return total(train, [2])",
    },
    "05": {
        1: "def stable_rank(matrix):\n    return np.linalg.matrix_rank(matrix)",
        2: "standing_out = 3",
        3: "equal_rank = 4",
    },
    "06": {
        1: "n_operations = 160_300",
        2: "def kron_times(a, b, x):\n    return np.kron(b, a) @ x",
        3: "n_tokens = 3490",
    },
    "07": {
        1: "by_chance = 20 / 400**2",
        2: "nearest_pair = min(pairs, key=lambda pair: within_layers(of_out, *pair))",
        3: "def rotate_out(matrix):\n    return matrix @ rotation()",
    },
    "08": {
        1: "half_shared = 'out r, layer proj r s, layer in s -> layer proj out in'",
        2: "lotr_rank = 14",
        3: "mine = method('lotr')",
    },
    "09": {
        1: "def weight_gradient(errors, inputs):\n    return inputs.T @ errors",
        2: "largest_rank = 5",
        3: "overlaps = [overlap(right, np.linalg.svd(g)[0][:, :3]) for g in stack]",
    },
    "10": {
        1: "forgetful = pairs[0][0] - 0.5 * pairs[2][0], pairs[0][1] + pairs[2][1]",
        2: "cosine = np.vdot(cores.stack[0], cores.stack[1])",
        3: "adapters = 6",
    },
    "11": {
        1: "def output_error(change):\n    return np.linalg.norm(change - delta)",
        2: "fair_inputs = inputs",
        3: "enough = 12",
    },
    "12": {
        1: "def nearest_inputs(before, after):\n    return nearest(before, after)",
        2: (
            "weight = np.diag(np.arange(40, 0, -1.0))\n"
            "change = np.full((40, 40), 1 / 40)\n"
            "strength = 17"
        ),
        3: (
            "values = np.linalg.svd(changes['all weights'][5, 0], compute_uv=False)\n"
            "held = values[:8].sum() / values.sum()"
        ),
    },
}
