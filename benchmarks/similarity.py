"""Do measures of similarity find the counterpart of a layer, and how fast is CKA?

    python -m benchmarks.similarity [--networks N] [--per-class N] [--epochs N] [--threads N] [-o FILE]

Kornblith et al. (2019) train networks that differ in nothing but their first weights, and ask of each layer of one which layer of another
is most like it. A good measure finds the layer at the same depth. Here ten convolutional networks of eight layers are trained on
Fashion-MNIST, all pairs are compared in both directions on 1,000 validation images, and the share of layers that are found is kept for
each measure. The second part times CKA of all pairs of twenty layers on 2,000 examples against the plain form with whole matrices."""
import argparse, time
from itertools import combinations

from .__main__ import record
from .measure import RESULTS, begin, compare, rounded

WIDTHS = [16, 16, 32, 32, 48, 48, 64, 64]


def network():
    "Eight convolutions, each with batch norm and ReLU, a mean and a dense layer"
    from torch import nn
    layers = []
    for i,(a,b) in enumerate(zip([1, *WIDTHS], WIDTHS)):
        layers.append(nn.Sequential(nn.Conv2d(a, b, 3, 2 if i in (2, 4) else 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))


def trained(options):
    "Learners that differ in their seed only"
    import torch
    from dlcourse.data.blocks import dls_for
    from dlcourse.training.learner import learner_for
    dls = dls_for('fashion_mnist', n_per_class=options.per_class, bs=128, seed=1)
    found = []
    for seed in range(1, options.networks + 1):
        torch.manual_seed(seed)
        learn = learner_for(network(), dls, seed=seed)
        with learn.quiet(): learn.fit_one_cycle(options.epochs, 0.01)
        found.append(learn)
        print(f'network {seed} of {options.networks}: accuracy {learn.history.accuracy.iloc[-1]:.4f}', flush=True)
    return found


def share_found(learners, measure):
    "For each ordered pair of networks the share of layers that `measure` finds, and the seconds of all pairs"
    from dlcourse.insight.similarity import similarity
    layers, start, shares = [str(i) for i in range(len(WIDTHS))], time.process_time(), []
    for a,b in combinations(learners, 2):
        found = similarity(a, b, layers=layers, n=1000, measure=measure, pool=measure != 'cka')
        shares.append(found.matched())
        values = found.values.values
        shares.append(float((values.argmax(0) == range(len(values))).mean()))
    return shares, time.process_time() - start


def naive_cka(x, y):
    "CKA from whole centered matrices"
    import numpy as np
    H = np.eye(len(x)) - 1/len(x)
    K, L = H @ (x @ x.T) @ H, H @ (y @ y.T) @ H
    return (K*L).sum()/np.sqrt((K*K).sum()*(L*L).sum())


def speed():
    "All pairs of twenty layers of up to 512 features on 2,000 examples: ours, and the plain form estimated from four of its 400 pairs"
    import numpy as np
    from dlcourse.insight.similarity import Kernel
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(2000, d)) for d in rng.integers(64, 513, 20)]
    ours, theirs = [], []
    for _ in range(2):
        start = time.process_time()
        kernels = [Kernel(x) for x in xs]
        for i,a in enumerate(kernels):
            for b in kernels[:i + 1]: a.hsic(b)
        ours.append(time.process_time() - start)
        start = time.process_time()
        for x in xs[:4]: naive_cka(xs[0], x)
        theirs.append(100*(time.process_time() - start))
    return compare('CKA, all pairs of 20 layers, 2,000 examples / plain form', 'cka', ours, theirs, 1/200).judge()


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.similarity', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--networks', type=int, default=10, metavar='N', help='networks, each with a seed of its own (10)')
    p.add_argument('--per-class', type=int, default=1000, metavar='N', help='training images of each class (1000)')
    p.add_argument('--epochs', type=int, default=6, metavar='N', help='epochs of each network (6)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('-o', '--output', default=RESULTS/'bench-similarity.json', metavar='FILE')
    return p.parse_args(args)


def main(args=None):
    options = arguments(args)
    began = begin(options.threads)
    import numpy as np
    learners, found = trained(options), {}
    for measure in ('cka', 'svcca', 'procrustes'):
        shares, seconds = share_found(learners, measure)
        found[measure] = dict(mean=float(np.mean(shares)), lowest=min(shares), pairs=len(shares), seconds=seconds)
        print(measure, found[measure], flush=True)
    accuracies = [float(o.history.accuracy.iloc[-1]) for o in learners]
    counterparts = dict(found=rounded(found), accuracies=accuracies, widths=WIDTHS, images=1000)
    record([speed().plain()], {'cka': dict(layers=20, examples=2000), 'counterparts': counterparts}, 'similarity', began, options.output,
           repeats=2, threads=options.threads)


if __name__ == '__main__': main()
