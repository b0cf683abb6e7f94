"""Dense attention on a CPU in bfloat16: torch's own beside the same in float32, forward and backward, in CPU time.

    python benchmarks/attention.py        # what parts/attention/dense.py decides by

Heads have 32 features. Both are measured in turn, on one thread; the ratio matters, since clock speeds drift.
"""

import time

import torch

from boxquery.parts.attention import dense

#: images, heads, queries and keys
SHAPES = ((4, 4, 40, 40), (4, 4, 100, 100), (4, 8, 100, 500), (4, 4, 400, 400), (4, 8, 100, 1000), (2, 8, 1000, 1000))
ROUNDS, REPEATS = 5, 4


def seconds(shape: tuple[int, int, int, int], pairs: int) -> float:
    """CPU time of one forward and backward pass where up to so many pairs are in float32."""
    dense.SMALL = pairs
    images, heads, queries, keys = shape
    q, k, v = (torch.randn(images, heads, n, 32, dtype=torch.bfloat16, requires_grad=True) for n in (queries, keys, keys))
    begun = time.process_time()
    for _ in range(REPEATS):
        dense.attend(q, k, v, None, 0.0, False)[0].sum().backward()
    return (time.process_time() - begun) / REPEATS


def main() -> None:
    torch.set_num_threads(1)
    print("| images, heads, queries, keys | bfloat16, ms | float32, ms |\n|---|---|---|")
    for shape in SHAPES:
        spent = {0: 0.0, shape[2] * shape[3]: 0.0}
        for _ in range(ROUNDS):
            for pairs in spent:
                spent[pairs] += seconds(shape, pairs) / ROUNDS
        print(f"| {', '.join(map(str, shape))} | {' | '.join(f'{1000 * value:.1f}' for value in spent.values())} |")


if __name__ == "__main__":
    main()
