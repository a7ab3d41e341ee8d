"""How fast is CKA of all pairs of layers?

    python -m benchmarks.similarity [--rounds N] [--threads N] [-o FILE]

All 210 pairs of twenty layers of 64 to 512 features on 2,000 examples, against the plain form, which makes two whole centered matrices for
each pair. Four pairs of the plain form are timed and counted 210/4 times. How well CKA finds the counterparts of layers is the experiment
pcs-4.2."""
import argparse, time

from .__main__ import record
from .measure import RESULTS, begin, compare

LAYERS, EXAMPLES, PAIRS, TIMED = 20, 2000, 210, 4


def naive_cka(x, y):
    "CKA from whole centered matrices, without a correction for the number of examples"
    import numpy as np
    H = np.eye(len(x)) - 1/len(x)
    K, L = H @ (x @ x.T) @ H, H @ (y @ y.T) @ H
    return (K*L).sum()/np.sqrt((K*K).sum()*(L*L).sum())


def layers_to_compare():
    "Layers as the rows of the benchmark have them: normal numbers of 64 to 512 features that share some"
    import numpy as np
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(EXAMPLES, 64))
    widths = rng.integers(64, 513, LAYERS)
    return {str(i): rng.normal(size=(EXAMPLES, d)) + shared @ rng.normal(size=(64, d))/8 for i,d in enumerate(widths)}


def seconds(f):
    "CPU seconds of `f()`, and what it gives"
    start = time.process_time()
    found = f()
    return time.process_time() - start, found


def largest_difference(xs):
    "Largest difference between the plain form and ours over the timed pairs, both without the correction"
    from dlcourse.insight.alignment import cka_matrix
    first, found = xs['0'], cka_matrix(xs, unbiased=False)
    return max(abs(naive_cka(first, xs[str(i)]) - found.loc['0', str(i)]) for i in range(TIMED))


def speed(xs, rounds):
    "All pairs: ours, and the plain form"
    from dlcourse.insight.alignment import cka_matrix
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: cka_matrix(xs))[0])
        plain = seconds(lambda: [naive_cka(xs['0'], xs[str(i)]) for i in range(TIMED)])[0]
        theirs.append(plain*PAIRS/TIMED)
    return compare('CKA, the 210 pairs of 20 layers, 2,000 examples / plain form', 'cka', ours, theirs, 1/200).judge()


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.similarity', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=3, metavar='N', help='times that both are measured (3)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('-o', '--output', default=RESULTS/'bench-similarity.json', metavar='FILE')
    return p.parse_args(args)


def main(args=None):
    options = arguments(args)
    began = begin(options.threads)
    xs = layers_to_compare()
    row, difference = speed(xs, options.rounds), largest_difference(xs)
    print(f'{1/row.ratio:.0f} times as fast, largest difference {difference:.1e}')
    sizes = dict(layers=LAYERS, examples=EXAMPLES, pairs=PAIRS, timed=TIMED, largest_difference=difference)
    record([row.plain()], {'cka': sizes}, 'similarity', began, options.output, repeats=options.rounds, threads=options.threads)


if __name__ == '__main__': main()
