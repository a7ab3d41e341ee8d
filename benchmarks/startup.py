"""What it takes before training begins: imports and the set-up of a large set, each in fresh processes.

`python -m benchmarks.startup N` sets up `N` images once and prints what that took, as JSON."""
import json, sys, sysconfig, time
from pathlib import Path

from .measure import Row, child, child_json, compare, single

COMMANDS = {'import torch': 'import torch', 'dlcourse --help': None, 'dlcourse.all': 'from dlcourse.all import *',
            'fastai.vision.all': 'from fastai.vision.all import *'}


def command(name, quick=False):
    "The command line that `name` stands for; in a dry run none that imports a heavy package"
    code = COMMANDS[name] and ('import json' if quick else COMMANDS[name])
    return [sys.executable, '-c', code] if code else [Path(sysconfig.get_path('scripts'))/name.split()[0], *name.split()[1:]]


def import_rows(options):
    "Start-up of each command, interleaved; the first round fills the caches and doesn't count"
    wall, cpu = ({k: [] for k in COMMANDS} for _ in range(2))
    for i in range(options.warm_up + options.starts):
        for k in COMMANDS:
            w, c, _ = child(command(k, options.quick), options.threads)
            if i >= options.warm_up: wall[k].append(w); cpu[k].append(c)
    pairs = [('dlcourse --help', 'import torch', 0.3), ('dlcourse.all', 'fastai.vision.all', 1.0), ('dlcourse.all', 'import torch', None)]
    rows = [compare(f'{a} / {b}' + (', CPU' if clock == 'CPU' else ''), 'import', s[a], s[b], t if clock == 'wall' else None, clock=clock)
            for clock, s in (('wall', wall), ('CPU', cpu)) for a,b,t in pairs]
    return rows, dict(seconds=wall, cpu_seconds=cpu)


def memory():
    "Bytes in memory of this process now, and at most since the last `forget_peak`"
    fields = dict(o.split(':') for o in Path('/proc/self/status').read_text().splitlines() if ':' in o)
    return [int(fields[k].split()[0]) * 1024 for k in ('VmRSS', 'VmHWM')]


def forget_peak(): Path('/proc/self/clear_refs').write_text('5')


def set_up(n):
    "Seconds, bytes kept and bytes at most that `dls_for` takes for `n` images beyond the images themselves"
    import gc, numpy as np
    from dlcourse.data.blocks import dls_for
    rng = np.random.default_rng(0)
    x, y = np.tile(rng.integers(0, 256, (1000, 28, 28), dtype=np.uint8), (n // 1000, 1, 1)), np.arange(n) % 10
    dls_for((x[:1000].copy(), y[:1000])).one_batch()
    gc.collect()
    forget_peak()
    (before, _), start = memory(), time.perf_counter()
    dls = dls_for((x, y))
    seconds = time.perf_counter() - start
    gc.collect()
    after, peak = memory()
    assert len(dls.train_ds) + len(dls.valid_ds) == n and dls.one_batch()[0].shape == (64, 1, 28, 28)
    return dict(seconds=seconds, kept=after-before, peak=peak-before)


def million_rows(options):
    "`dls_for` on one million images of 28×28 pixels in an array"
    n = 10_000 if options.quick else 1_000_000
    if sys.platform != 'linux':
        return [Row('million images', 'million', note='not measured: memory is read from /proc, which only Linux has')], {}
    def once(): return set_up(n) if options.quick else child_json('benchmarks.startup', n, threads=options.threads)
    found = [once() for _ in range(options.starts)]
    of = lambda k, scale=1: [o[k] / scale for o in found]
    kw = dict(group='million', clock='wall')
    rows = [single('million images: set-up', values=of('seconds'), target=0.2, **kw),
            single('million images: memory kept beyond the pixels', values=of('kept', 2**20), target=30, unit='MB', **kw),
            single('million images: memory at most beyond the pixels', values=of('peak', 2**20), unit='MB', **kw)]
    return rows, dict(images=n, runs=found)


if __name__ == '__main__': print(json.dumps(set_up(int(sys.argv[1]))))
