"""Training in two processes against one, each on one thread: the wall time of an epoch of the same batches.

    python -m benchmarks.parallel [--repeats N] [-o FILE]

Networks see batches of 64 random images of 3×32×32. In two processes each computes half of a batch; tests/test_parallel.py holds that the
weights are those of one process. The floor is two processes that train for themselves, each on batches of 32, without a message. It needs a
core for each process and nothing else that computes."""
import argparse, json, statistics, sys
from contextlib import nullcontext

from .__main__ import record
from .measure import RESULTS, begin, child, compare

TARGET = 0.625 # of the time, for 1.6 times the throughput
ARCHS = ('cnn', 'cnn_v2')
WAYS = dict(joint='', shares=', statistics of each share', apart=', without a message')
BATCH, BATCHES, EPOCHS = 64, 24, 4


def epochs(arch, way):
    "Seconds of each epoch of one fit in this process, validation on one batch included"
    from .convolutions import ColorTask
    from .loops import HYPER, our_loaders
    from dlcourse.training.learner import learner_for
    bs = BATCH//2 if way == 'apart' else BATCH
    learn = learner_for(arch, our_loaders(ColorTask(arch, bs, bs*BATCHES)), seed=0)
    with learn.quiet(), nullcontext() if way == 'apart' else learn.distrib_ctx(sync_bn=way == 'joint'): learn.fit(EPOCHS, HYPER['lr'])
    return [o['seconds'] for o in learn.rows]


def epoch_in(processes, arch, way='joint'):
    "Median seconds of an epoch after the first one, in as many processes"
    command = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)] if processes > 1 else []
    out = child([sys.executable, '-W', 'ignore', *command, '-m', 'benchmarks.parallel', '--epochs-of', arch, way], 1)[2]
    return statistics.median(json.loads(next(o for o in reversed(out.splitlines()) if o.startswith('[')))[1:])


def main(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.parallel', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=5, metavar='N', help='rounds (5)')
    p.add_argument('-o', '--output', default=RESULTS/'bench-parallel.json', metavar='FILE')
    p.add_argument('--epochs-of', nargs=2, help=argparse.SUPPRESS)
    options = p.parse_args(args)
    if options.epochs_of:
        from dlcourse.core import is_first
        found = epochs(*options.epochs_of)
        if is_first(): print(json.dumps(found), flush=True)
        return
    began, rows, seconds = begin(1), [], {}
    for arch in ARCHS:
        times = {o: [] for o in ('one', *WAYS)}
        for _ in range(options.repeats):
            times['one'].append(epoch_in(1, arch))
            for way in WAYS: times[way].append(epoch_in(2, arch, way))
        for way, says in WAYS.items():
            target = None if way == 'apart' else TARGET
            found = compare(f'{arch}, two processes{says} / one process', 'processes', times[way], times['one'], target, clock='wall')
            rows.append(found.judge().plain())
        seconds[arch] = times
    record(rows, dict(processes=dict(seconds=seconds)), 'parallel', began, options.output, repeats=options.repeats, threads=1)


if __name__ == '__main__': main()
