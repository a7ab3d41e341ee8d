"""How things are timed: each contestant once a round (A B C, A B C, ...), and ratios within a round.

What disturbs one contestant of a round usually disturbs its neighbours too, so the median of the ratios within rounds is far steadier
than a ratio of two separate measurements."""
import contextlib, gc, json, os, subprocess, sys, time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT/'results'/'benchmarks'
TO_THE_END = contextlib.ExitStack()


@dataclass
class Row:
    "One comparison, as it stands in the results"
    name:str                  # What is measured / against what
    group:str                 # The contestants measured together
    unit:str = 's'            # Of `ours` and `peer`
    clock:str = 'CPU'         # 'CPU' or 'wall'
    ours:float = None         # Median over the rounds
    peer:float = None         # Median over the rounds
    ratio:float = None        # Median over the rounds of ours / peer
    spread:list = None        # Lower and upper quartile of the ratio, or of `ours` where there is no peer
    rounds:int = 0
    target:float = None       # The ratio, or `ours` where there is no peer, is to be at most this
    met:bool = None           # Whether it is; None without a target or a measurement
    note:str = None           # Why there is no measurement, or what to know about it

    @property
    def value(self): return self.ours if self.ratio is None else self.ratio

    def judge(self, judged=True):
        "Set `met`, if there is something to judge"
        if judged and self.target is not None and self.value is not None: self.met = self.value <= self.target
        return self

    def plain(self): return {k: rounded(v) for k,v in asdict(self).items()}


def rounded(o, digits=4):
    "`o`, or what it holds, with `digits` significant digits"
    if isinstance(o, dict): return {k: rounded(v, digits) for k,v in o.items()}
    if isinstance(o, (list, tuple)): return [rounded(v, digits) for v in o]
    return float(f'{o:.{digits}g}') if isinstance(o, float) else o


def clock_for(device): return 'CPU' if device == 'cpu' else 'wall'


def again(f, n):
    "A function that calls `f` `n` times and keeps nothing"
    def run():
        for _ in range(n): f()
    return run


def timed(f, device):
    "Seconds that `f()` takes: those of this process on a CPU, those on the wall, after synchronising, on a GPU"
    import torch
    sync = torch.cuda.synchronize if device == 'cuda' else lambda: None
    now = time.process_time if device == 'cpu' else time.perf_counter
    gc.collect()
    sync()
    start = now()
    f()
    sync()
    return now() - start


def keep_memory():
    """Keep memory that is freed until this process ends, as `learner_for` does while it trains; whether that could be set.

    Otherwise a batch of a few hundred kilobytes costs page faults or not, depending on what ran before."""
    from dlcourse.core import kept_memory
    return TO_THE_END.enter_context(kept_memory())


@contextlib.contextmanager
def silent():
    "What is printed goes nowhere, so that progress bars are made but not drawn"
    with open(os.devnull, 'w') as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f): yield


def interleaved(
    contestants, # Name -> function without arguments
    options,     # Those of the command line: device, rounds to warm up, rounds that count
    times=1,     # So many times as many rounds, for what takes milliseconds
): # Name -> seconds in each round that counts
    "Time every contestant once a round"
    seconds = {k: [] for k in contestants}
    gc.freeze() # what is there already isn't searched for garbage before each timing
    with silent():
        for i in range(options.warm_up + options.repeats*times):
            for k,f in contestants.items():
                t = timed(f, options.device)
                if i >= options.warm_up: seconds[k].append(t)
    return seconds


def compare(name, group, ours, peer, target=None, scale=1, **kw):
    "A row from the seconds of each round of two contestants, each divided by `scale`"
    r = np.array(ours) / np.array(peer)
    return Row(name, group, ours=float(np.median(ours))/scale, peer=float(np.median(peer))/scale, ratio=float(np.median(r)),
               spread=np.quantile(r, [0.25, 0.75]).tolist(), rounds=len(r), target=target, **kw)


def single(name, group, values, target=None, **kw):
    "A row from one value a round, without a peer"
    spread = np.quantile(values, [0.25, 0.75]).tolist()
    return Row(name, group, ours=float(np.median(values)), spread=spread, rounds=len(values), target=target, **kw)


def begin(threads, keeps=True):
    "Fix the number of threads before torch is imported, and let the C library keep memory if it `keeps`; returns what `run_facts` asks for"
    os.environ.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    start, load = time.time(), list(os.getloadavg())
    import torch
    kept = keeps and keep_memory()
    torch.set_num_threads(threads)
    return start, load, kept


def child(
    args,    # Command line
    threads, # Threads that torch may use in it
): # (seconds on the wall, CPU seconds, what it printed)
    "Run a command in a fresh process; raises `RuntimeError` with its last words if it fails"
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    before, start = os.times(), time.perf_counter()
    out = subprocess.run(args, env=env, cwd=ROOT, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, os.times()
    if out.returncode: raise RuntimeError(f'{" ".join(map(str, args))} failed: {out.stderr.strip()[-500:]}')
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu, out.stdout


def child_json(module, *args, threads=1):
    "What `python -m module args` in a fresh process prints last, as JSON"
    return json.loads(child([sys.executable, '-m', module, *map(str, args)], threads)[2].splitlines()[-1])
