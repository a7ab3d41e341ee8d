"""Convolutional networks as `learner_for` trains them on a processor, channels last, against the bare loop in float32 and the usual order.

Networks see batches of 64 random images of 3×32×32. The bare loop draws a permutation, casts and normalises a batch at a time, and
trains with the same optimiser and loss. It is torch as it comes: with torch's dropout, and freed memory goes back to the system, which
`learner_for` keeps while it trains. bfloat16 is measured only where this processor multiplies faster in it than in float32.

The last row asks how near the training comes to what the processor can do: its time for an operation (a multiplication or an addition,
counted by torch, validation included) against that of the product of two matrices of 1024×1024."""
import argparse, json
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .__main__ import record
from .loops import HYPER, Task, bare_loop, our_loaders
from .measure import RESULTS, Row, again, begin, child_json, compare, interleaved, silent

NETWORKS = ('cnn', 'cnn_v2', 'cnn_v3', 'residual')
SHAPE, BATCH, BATCHES = (3, 32, 32), 64, 6
TARGETS = dict(float32=0.85, bf16=0.55)
MISSING = 'not measured: no instructions for bfloat16 here'
RATED, SIDE, PRODUCTS = 'cnn_v3', 1024, 20 # The network that is compared with a product of matrices; their rows; how many in a round


@dataclass
class ColorTask(Task):
    "Random images in color; one batch of them to validate on"
    def model(self):
        "The network with torch's own dropout"
        net = super().model()
        for o in net.modules():
            if isinstance(o, nn.Dropout): o.__class__ = nn.Dropout
        return net

    def images(self):
        g, n = torch.Generator().manual_seed(0), self.n + self.bs
        x = torch.randint(0, 256, (n, *SHAPE), generator=g, dtype=torch.uint8)
        y = torch.randint(0, 10, (n,), generator=g)
        return 'random images', x[:self.n], y[:self.n], x[self.n:], y[self.n:]


def ours(task, **kwargs):
    "A function that trains a Learner"
    from dlcourse.training.learner import learner_for
    learn = learner_for(task.arch, our_loaders(task), seed=0, **kwargs)
    return again(lambda: learn.fit(1, HYPER['lr']), task.epochs)


def operations(f):
    "Multiplications and additions of the convolutions and products of matrices that `f()` does"
    with silent(), FlopCounterMode(display=False) as counted: f()
    return counted.get_total_flops()


def seconds_of(arch, options):
    "Seconds of each contestant in each round, and for `RATED` the operations of two of them"
    from dlcourse.training.precision import bf16_speed
    task = ColorTask(arch, BATCH, BATCH*(1 if options.quick else BATCHES))
    contestants, work = dict(peer=bare_loop(task)[0], float32=ours(task)), {}
    if bf16_speed() > 1:
        contestants['bf16'] = ours(task, precision='bf16')
        if arch == RATED:
            x = torch.rand(SIDE, SIDE).bfloat16()
            contestants['product'] = again(lambda: x @ x, PRODUCTS)
            work = {k: operations(contestants[k])/1e9 for k in ('bf16', 'product')}
    return dict(seconds=interleaved(contestants, options), work=work)


def pooled(arch, options):
    "`seconds_of` over processes of their own: where the memory of one lies makes all its rounds faster or slower by some per cent"
    if options.quick: return seconds_of(arch, options)
    args = ['--one', arch, '--repeats', options.repeats, '--threads', options.threads]
    found = [child_json('benchmarks.convolutions', *args, threads=options.threads) for _ in range(options.starts)]
    return dict(found[0], seconds={k: [t for o in found for t in o['seconds'][k]] for k in found[0]['seconds']})


def rows_of(arch, options):
    "A row for each precision; for `RATED` one more, the time for an operation: half the rate of a product of matrices is twice its time"
    found = pooled(arch, options)
    seconds = found['seconds']
    def row(name, ours, peer, target, work={}):
        if ours not in seconds: return Row(name, 'convolutions', target=target, note=MISSING)
        return compare(name, 'convolutions', *([t/work.get(k, 1) for t in seconds[k]] for k in (ours, peer)), target)
    rows = [row(f'{arch}, {k} / bare loop in float32, usual order', k, 'peer', v) for k,v in TARGETS.items()]
    if arch == RATED:
        name = f'{arch}, bf16: seconds for 1e9 operations / in a product of matrices of {SIDE}×{SIDE}'
        rows.append(row(name, 'bf16', 'product', 2, found['work']))
    return [o.judge(not options.quick) for o in rows]


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.convolutions', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--networks', nargs='+', default=NETWORKS, choices=NETWORKS, metavar='NAME', help='only these: ' + ', '.join(NETWORKS))
    p.add_argument('--starts', type=int, default=3, metavar='N', help='processes for each network (3)')
    p.add_argument('--repeats', type=int, default=5, metavar='N', help='rounds of a process that count; one more warms up (5)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('--quick', action='store_true', help='a dry run: one batch, one round, nothing judged')
    p.add_argument('--one', choices=NETWORKS, metavar='NAME', help='only print the seconds of this network, as JSON, from one process')
    p.add_argument('-o', '--output', default=RESULTS/'bench-convolutions.json', metavar='FILE')
    return p.parse_args(args)


def main(args=None):
    options = arguments(args)
    began = begin(options.threads, keeps=False)
    rounds = 1 if options.quick else options.repeats
    o = SimpleNamespace(device='cpu', warm_up=0 if options.quick else 1, repeats=rounds, starts=options.starts, threads=options.threads,
                        quick=options.quick)
    if options.one: return print(json.dumps(seconds_of(options.one, o)))
    rows = [r.plain() for arch in options.networks for r in rows_of(arch, o)]
    facts = dict(shape=SHAPE, batch=BATCH, batches=BATCHES, starts=options.starts)
    record(rows, dict(convolutions=facts), 'convolutions', began, options.output, repeats=o.repeats, threads=options.threads)


if __name__ == '__main__': main()
