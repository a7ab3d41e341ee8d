"""The training loop: one network, one optimiser, one loss, the same images in batches of the same size, in ten ways.

Each contestant is a function of a `Task` that prepares everything and gives two things: a function that trains `task.epochs` epochs,
each followed by one look at the validation images (this is what is timed), and the network, whose accuracy is checked at the end.
Preparation is not timed: reading, making tensors or items, building the Learner or Trainer."""
import logging, warnings
from dataclasses import dataclass, field
from functools import partial

import numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlcourse.core import CourseError, optional
from dlcourse.data.sources import load
from dlcourse.models.zoo import model_for

from .measure import Row, again, clock_for, compare, interleaved

HYPER = dict(lr=1e-3, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01) # fastai's Adam in torch's words


def images(n, n_valid=512, seed=0):
    "Name of the data, `n` training images and labels, `n_valid` of the test images and labels"
    try: ex = load('mnist', download=False)
    except CourseError: ex = load('fashion_mini')
    g = torch.Generator().manual_seed(seed)
    pick = lambda size, k: torch.cat([torch.randperm(size, generator=g) for _ in range(-(-k // size))])[:k]
    i, j = pick(len(ex.x), n), pick(len(ex.x_test), n_valid)
    name = ex.name + (f', repeated to {n:,} images' if n > len(ex.x) else f', {n:,} images')
    return name, ex.x[i], ex.y[i], ex.x_test[j], ex.y_test[j]


@dataclass
class Task:
    "What every contestant trains"
    arch:str
    bs:int
    n:int                                     # Training images
    epochs:int = 1
    device:str = 'cpu'
    kwargs:dict = field(default_factory=dict) # Of the network

    def __post_init__(self):
        self.data, self.x, self.y, self.xv, self.yv = self.images()
        self.mean, self.std = float(self.x.float().mean() / 255), float(self.x.float().std() / 255)

    def images(self): return images(self.n)

    def model(self):
        "The same first weights for everyone"
        torch.manual_seed(0)
        return model_for(self.arch, tuple(self.x.shape[1:]), 10, **self.kwargs).to(self.device)

    def ready(self, x): return x.float().div_(255).sub_(self.mean).div_(self.std)
    def on_device(self): return [o.to(self.device) for o in (self.x, self.y, self.xv, self.yv)]
    def floats(self): return TensorDataset(self.ready(self.x), self.y), TensorDataset(self.ready(self.xv), self.yv)

    def loaders(self, train, valid):
        "torch's `DataLoader`s without workers, which lose on small images and few cores"
        return DataLoader(train, self.bs, shuffle=True, drop_last=True), DataLoader(valid, len(valid))

    def accuracy(self, model):
        "Share of the validation images that `model` gets right"
        with torch.no_grad(): out = model.to(self.device).eval()(self.ready(self.xv.to(self.device)))
        return float((out.argmax(1).cpu() == self.yv).float().mean())


adam = partial(torch.optim.AdamW, **HYPER, fused=True)


def step(model, opt, loss_func, xb, yb):
    loss = loss_func(model(xb), yb)
    loss.backward()
    opt.step()
    opt.zero_grad()


def look(model, loss_func, batches):
    "Loss and accuracy of the validation batches"
    model.eval()
    with torch.no_grad(): found = [(loss_func(out := model(xb), yb), (out.argmax(1) == yb).float().mean()) for xb,yb in batches]
    model.train()
    return [float(torch.stack(o).mean()) for o in zip(*found)]


def bare_loop(task):
    "The floor: the whole set as one tensor of bytes, a permutation, cast and normalise a batch at a time"
    model, loss_func, (x, y, xv, yv) = task.model(), nn.CrossEntropyLoss(), task.on_device()
    opt = adam(model.parameters())
    def epoch():
        for i in torch.randperm(len(x), device=x.device).split(task.bs):
            step(model, opt, loss_func, task.ready(x.index_select(0, i)), y.index_select(0, i))
        look(model, loss_func, [(task.ready(xv), yv)])
    return again(epoch, task.epochs), model


def our_loaders(task):
    from dlcourse.data.blocks import dls_for
    x, y = torch.cat([task.x, task.xv]), torch.cat([task.y, task.yv])
    return dls_for((x, y), valid=np.arange(len(task.x), len(x)), bs=task.bs, val_bs=len(task.xv), device=task.device)


def our_learner(task):
    "`learner_for` on the arrays, with all its default callbacks, recorder and progress bar"
    from dlcourse.training.learner import learner_for
    return learner_for(task.model(), our_loaders(task))


def ours(task):
    learn = our_learner(task)
    return lambda: learn.fit(task.epochs, HYPER['lr']), learn.model


def one_cycle(task):
    learn = our_learner(task)
    return lambda: learn.fit_one_cycle(task.epochs, HYPER['lr']), learn.model


def stock_learner(task, **kwargs):
    "fastai's own Learner on our loader, with its own Adam and loss"
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    learn = Learner(our_learner(task).dls, task.model(), metrics=accuracy, **kwargs)
    return lambda: learn.fit(task.epochs, HYPER['lr']), learn.model


def stock_options(task):
    "fastai's own Learner on our loader, with our loss and optimiser"
    learn = our_learner(task)
    return stock_learner(task, loss_func=learn.loss_func, opt_func=learn.opt_func)


def fastai_arrays(task):
    "fastai as it comes: a `DataBlock` over arrays, its own loader, Learner, Adam and loss"
    from fastai.vision.all import (CategoryBlock, DataBlock, ImageBlock, IndexSplitter, Learner, Normalize, PILImageBW, accuracy)
    x, y = torch.cat([task.x, task.xv])[:, 0].numpy(), torch.cat([task.y, task.yv]).tolist()
    block = DataBlock(blocks=(ImageBlock(PILImageBW), CategoryBlock), get_x=lambda i: x[i], get_y=lambda i: y[i],
                      splitter=IndexSplitter(range(len(task.x), len(x))),
                      batch_tfms=Normalize.from_stats([task.mean], [task.std], cuda=task.device == 'cuda'))
    dls = block.dataloaders(range(len(x)), bs=task.bs, val_bs=len(task.xv), num_workers=0, device=task.device)
    learn = Learner(dls, task.model(), metrics=accuracy)
    return lambda: learn.fit(task.epochs, HYPER['lr']), learn.model


def torchvision_loop(task):
    "torchvision's MNIST items and transforms, torch's `DataLoader`, a plain loop"
    from torchvision.datasets import MNIST, VisionDataset
    from torchvision.transforms import Compose, Normalize, ToTensor
    class Items(MNIST):
        def __init__(self, x, y):
            VisionDataset.__init__(self, '', transform=Compose([ToTensor(), Normalize((task.mean,), (task.std,))]))
            self.data, self.targets = x[:, 0], y
        def __len__(self): return len(self.data)
    return plain_loop(task, *task.loaders(Items(task.x, task.y), Items(task.xv, task.yv)))


def tensor_loop(task):
    "A `TensorDataset` of normalised floats, torch's `DataLoader`, a plain loop"
    return plain_loop(task, *task.loaders(*task.floats()))


def plain_loop(task, train, valid):
    model, loss_func = task.model(), nn.CrossEntropyLoss()
    opt, moved = adam(model.parameters()), lambda dl: ((xb.to(task.device), yb.to(task.device)) for xb,yb in dl)
    def epoch():
        for xb,yb in moved(train): step(model, opt, loss_func, xb, yb)
        look(model, loss_func, moved(valid))
    return again(epoch, task.epochs), model


def lightning_module(L, task):
    class Module(L.LightningModule):
        def __init__(self): super().__init__(); self.net, self.loss_func = task.model(), nn.CrossEntropyLoss()
        def training_step(self, b, i): return self.loss_func(self.net(b[0]), b[1])
        def validation_step(self, b, i):
            out = self.net(b[0])
            self.log_dict(dict(valid_loss=self.loss_func(out, b[1]), accuracy=(out.argmax(1) == b[1]).float().mean()))
        def configure_optimizers(self): return adam(self.parameters())
    return Module()


def lightning_trainer(task, progress=True):
    "Lightning on a `TensorDataset` of normalised floats, with its progress bar; without what writes files"
    L = optional('lightning', 'bench')
    for o in ('lightning.pytorch', 'lightning.fabric'): logging.getLogger(o).setLevel(logging.ERROR)
    module, loaders = lightning_module(L, task), task.loaders(*task.floats())
    trainer = L.Trainer(max_epochs=0, accelerator='gpu' if task.device == 'cuda' else 'cpu', devices=1, logger=False,
                        num_sanity_val_steps=0,
                        enable_checkpointing=False, enable_progress_bar=progress, enable_model_summary=False)
    def run():
        trainer.fit_loop.max_epochs += task.epochs
        trainer.fit(module, *loaders)
    return run, module.net


def lightning_silent(task):
    "The same without its progress bar"
    return lightning_trainer(task, progress=False)


def skorch_net(task):
    "skorch on normalised floats, with its default callbacks"
    skorch = optional('skorch', 'bench')
    from skorch.helper import predefined_split
    (x, y), valid = task.floats()[0].tensors, skorch.dataset.Dataset(*task.floats()[1].tensors)
    net = skorch.NeuralNetClassifier(task.model(), criterion=nn.CrossEntropyLoss, optimizer=adam, lr=HYPER['lr'],
                                     batch_size=task.bs, verbose=0,
                                     max_epochs=task.epochs, train_split=predefined_split(valid), device=task.device,
                                     iterator_train__shuffle=True, iterator_train__drop_last=True, iterator_valid__batch_size=len(valid))
    net.initialize()
    return lambda: net.partial_fit(x, y), net.module_


PEERS = {'bare loop': bare_loop, 'stock Learner, our loader': stock_learner, 'stock Learner, our loader, loss, optimiser': stock_options,
         'fastai from arrays': fastai_arrays,
         'TensorDataset, plain loop': tensor_loop, 'torchvision, plain loop': torchvision_loop, 'Lightning': lightning_trainer,
         'Lightning, no progress bar': lightning_silent, 'skorch': skorch_net}
TASKS = {'fit-mlp-64':  dict(arch='mlp', bs=64, n=10240, kwargs=dict(widths=(128, 64))),
         'fit-mlp-512': dict(arch='mlp', bs=512, n=20480, kwargs=dict(widths=(128, 64))),
         'fit-cnn-64':  dict(arch='cnn', bs=64, n=3200, kwargs=dict(filters=(8, 16)))}
PEER_TARGETS = {'fastai from arrays': 1/8, 'Lightning': 0.7, 'Lightning, no progress bar': 0.7, 'skorch': 1.0}
TARGETS = {'fit-mlp-64':  {'bare loop': 1.35, **PEER_TARGETS},
           'fit-mlp-512': {'bare loop': 1.10, **PEER_TARGETS},
           'fit-cnn-64':  {'bare loop': 1.15}}


def prepared(makers, task):
    "The contestants that can run here, and what the others lack"
    ready, missing = {}, {}
    for name, make in makers.items():
        try: ready[name] = make(task)
        except CourseError as e:
            if 'pip install' not in str(e): raise
            missing[name] = f"not measured: {str(e).partition(': ')[2]}"
    return ready, missing


def learned(ready, task, floor):
    "The accuracy of each contestant's network; raises `RuntimeError` if one didn't learn, since then its time means nothing"
    acc = {k: task.accuracy(model) for k,(_, model) in ready.items()}
    poor = {k: v for k,v in acc.items() if v < floor}
    if poor: raise RuntimeError(f'the accuracy after the measurement is too low: {poor}')
    return acc


def fit_rows(group, options):
    "The rows of one task, and the seconds and accuracies behind them"
    kw, clock = dict(TASKS[group]), clock_for(options.device)
    if options.quick: kw.update(n=2*kw['bs'], epochs=1)
    task = Task(device=options.device, **kw)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ready, missing = prepared({'ours': ours, 'ours, one cycle': one_cycle, **PEERS}, task)
        seconds = interleaved({k: run for k,(run, _) in ready.items()}, options)
    def row(k):
        named = dict(name=f'{group} / {k}', group=group, target=TARGETS[group].get(k), clock=clock)
        return Row(**named, note=missing[k]) if k in missing else compare(ours=seconds['ours'], peer=seconds[k], **named)
    cycle = compare(f'{group}, one cycle / bare loop', group, seconds['ours, one cycle'], seconds['bare loop'], clock=clock)
    accuracy = learned(ready, task, 0. if options.quick else 0.7)
    detail = dict(data=task.data, batches=task.n // task.bs * task.epochs, network=f'{task.arch} {task.kwargs}',
                  accuracy=accuracy, seconds=seconds)
    return [*map(row, PEERS), cycle], detail
