"""What a processor gains where freed memory is kept for the next batch, as `learner_for` keeps it, against the C library as it comes.

    python -m benchmarks.memory [--works NAME ...] [--starts N] [-o FILE]

Networks train on batches of 64 random images: small ones of 3×32×32, and two from scratch on 3×64×64. The last row computes the features
of a frozen MobileNetV2 for images of 3×224×224. Either way has processes of its own, which take turns; a ratio is one of two processes
that followed each other. The second rows compare the most memory that they took, imports included."""
import argparse, json, resource
from types import SimpleNamespace

import torch

from .__main__ import record
from .measure import RESULTS, begin, child_json, compare, interleaved, silent

WORKS = dict(cnn=(32, 6), cnn_v3=(32, 6), residual=(32, 3), mobilenet_v2=(64, 3), alexnet=(64, 3), features=(224, 1)) # Side, batches
BATCH, MOST = 64, 1.0 # Images; what a ratio may be


def work(name, quick):
    "A function that trains for an epoch, or computes features"
    from dlcourse.data.blocks import dls_for
    from dlcourse.training.learner import learner_for
    from dlcourse.training.transfer import feature_table
    (side, batches), g = WORKS[name], torch.Generator().manual_seed(0)
    n = BATCH*(1 if quick else batches)
    x = torch.randint(0, 256, (n + BATCH, 3, side, side), generator=g, dtype=torch.uint8)
    y = torch.randint(0, 10, (len(x),), generator=g)
    dls = dls_for((x, y), valid=BATCH, bs=BATCH, seed=1)
    arch, untrained = name.replace('features', 'mobilenet_v2'), dict(pretrained=False) if side > 32 else {}
    learn = learner_for(arch, dls, seed=1, **untrained)
    if name != 'features': return lambda: learn.fit(1, 1e-3)
    learn.freeze()
    return lambda: feature_table(learn.model, learn.dls)


def measured(name, is_kept, options):
    "Seconds of each round, and the most megabytes that this process took"
    from dlcourse import core
    if not is_kept: core._c_library = lambda: None
    with silent(): run = work(name, options.quick)
    seconds = interleaved({name: run}, options)[name]
    return dict(seconds=seconds, memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)


def rows_of(name, options):
    "A row for the seconds of `name`, and one for its memory"
    found = {'kept': [], 'as it comes': []}
    for _ in range(options.starts):
        for k,runs in found.items():
            args = ['--one', name, '--repeats', options.repeats, '--threads', options.threads, *(['--kept'] if k == 'kept' else []),
                    *(['--quick'] if options.quick else [])]
            runs.append(child_json('benchmarks.memory', *args, threads=options.threads))
    seconds = [[v for o in runs for v in o['seconds']] for runs in found.values()]
    memory = [[o['memory'] for o in runs] for runs in found.values()]
    title = f'{name}, {"an epoch" if name != "features" else "MobileNetV2 frozen"}'
    rows = [compare(f'{title}: memory kept / as it comes', 'memory', *seconds, MOST),
            compare(f'{title}: most memory, kept / as it comes', 'memory', *memory, unit='MB')]
    return [o.judge(not options.quick) for o in rows]


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.memory', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--works', nargs='+', default=list(WORKS), choices=list(WORKS), metavar='NAME', help='only these: ' + ', '.join(WORKS))
    p.add_argument('--starts', type=int, default=3, metavar='N', help='processes of either way (3)')
    p.add_argument('--repeats', type=int, default=4, metavar='N', help='rounds of a process that count; one more warms up (4)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('--quick', action='store_true', help='a dry run: one batch, one round, nothing judged')
    p.add_argument('--one', choices=list(WORKS), metavar='NAME', help='only print what one process measures, as JSON')
    p.add_argument('--kept', action='store_true', help='with --one: keep memory')
    p.add_argument('-o', '--output', default=RESULTS/'bench-memory.json', metavar='FILE')
    return p.parse_args(args)


def main(args=None):
    options = arguments(args)
    rounds, starts = (1, 1) if options.quick else (options.repeats, options.starts)
    o = SimpleNamespace(device='cpu', warm_up=0 if options.quick else 1, repeats=rounds, starts=starts, threads=options.threads,
                        quick=options.quick)
    if options.one:
        torch.set_num_threads(options.threads)
        return print(json.dumps(measured(options.one, options.kept, o)))
    began = begin(options.threads)
    rows = [r.plain() for name in options.works for r in rows_of(name, o)]
    record(rows, dict(memory=dict(batch=BATCH, starts=starts)), 'memory', began, options.output, repeats=rounds, threads=options.threads)


if __name__ == '__main__': main()
