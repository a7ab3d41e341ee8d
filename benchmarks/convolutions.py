"""Convolutional networks trained by `learner_for(..., channels_last=True)`, against the bare loop in float32 and the usual order.

Networks see batches of 64 random images of 3×32×32. The bare loop draws a permutation, casts and normalises a batch at a time, and
trains with the same optimiser and loss. bfloat16 is measured only where this processor multiplies faster in it than in float32."""
import argparse
from types import SimpleNamespace

import numpy as np, torch
from torch import nn

from dlcourse.models.zoo import model_for

from .__main__ import record
from .measure import RESULTS, Row, begin, compare, interleaved

NETWORKS = ('cnn', 'cnn_v2', 'cnn_v3', 'residual')
SHAPE, BATCH, BATCHES, RATE = (3, 32, 32), 64, 6, 1e-3
TARGETS = dict(float32=0.85, bf16=0.55)


def images(n):
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, *SHAPE), generator=g, dtype=torch.uint8), torch.randint(0, 10, (n,), generator=g)


def learner_epochs(arch, x, y, **kwargs):
    "A function that trains a Learner for an epoch"
    from dlcourse.data.blocks import dls_for
    from dlcourse.training.learner import learner_for
    both = torch.cat([x, x[:BATCH]]), torch.cat([y, y[:BATCH]])
    learn = learner_for(arch, dls_for(both, valid=np.arange(len(x), len(x) + BATCH), bs=BATCH, seed=0), seed=0, **kwargs)
    return lambda: learn.fit(1, RATE)


def bare_epochs(arch, x, y):
    "A function that trains for an epoch by hand, and looks at as many validation images as the Learner"
    from dlcourse.training.lean import adamw
    torch.manual_seed(0)
    model, loss_func = model_for(arch, SHAPE, 10), nn.CrossEntropyLoss()
    opt = adamw(model.parameters(), lr=RATE).opt
    mean, std = x.float().mean((0, 2, 3), keepdim=True)/255, x.float().std((0, 2, 3), keepdim=True)/255
    def ready(x): return x.float().div_(255).sub_(mean).div_(std)
    def epoch():
        model.train()
        for i in torch.randperm(len(x)).split(BATCH):
            loss_func(model(ready(x[i])), y[i]).backward()
            opt.step()
            opt.zero_grad()
        model.eval()
        with torch.no_grad(): float(loss_func(model(ready(x[:BATCH])), y[:BATCH]))
    return epoch


def rows_of(arch, options):
    "A row for each precision"
    from dlcourse.training.precision import bf16_speed
    x, y = images(BATCH*(1 if options.quick else BATCHES))
    pays, contestants = bf16_speed() > 1, dict(peer=bare_epochs(arch, x, y), float32=learner_epochs(arch, x, y, channels_last=True))
    if pays: contestants['bf16'] = learner_epochs(arch, x, y, channels_last=True, precision='bf16')
    found = interleaved(contestants, options)
    def row(k):
        name = f'{arch}, {k} / bare loop in float32, usual order'
        if k in found: return compare(name, 'convolutions', found[k], found['peer'], TARGETS[k])
        return Row(name, 'convolutions', target=TARGETS[k], note='not measured: no instructions for bfloat16 here')
    return [row(k).judge(not options.quick) for k in TARGETS]


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.convolutions', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--networks', nargs='+', default=NETWORKS, choices=NETWORKS, metavar='NAME', help='only these: ' + ', '.join(NETWORKS))
    p.add_argument('--repeats', type=int, default=7, metavar='N', help='rounds that count; one more warms up (7)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('--quick', action='store_true', help='a dry run: one batch, one round, nothing judged')
    p.add_argument('-o', '--output', default=RESULTS/'bench-convolutions.json', metavar='FILE')
    return p.parse_args(args)


def main(args=None):
    options = arguments(args)
    began = begin(options.threads)
    rounds = 1 if options.quick else options.repeats
    o = SimpleNamespace(device='cpu', warm_up=0 if options.quick else 1, repeats=rounds, quick=options.quick)
    rows = [r.plain() for arch in options.networks for r in rows_of(arch, o)]
    facts = dict(shape=SHAPE, batch=BATCH, batches=BATCHES)
    record(rows, dict(convolutions=facts), 'convolutions', began, options.output, repeats=o.repeats, threads=options.threads)


if __name__ == '__main__': main()
