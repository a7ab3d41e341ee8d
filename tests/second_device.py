"A second device made in Python: its tensors lie in the CPU's memory, know that they are elsewhere, and refuse what a GPU refuses"
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

there = torch.device('xpu', 0) # a kind of device that no test machine has
torch_generator, torch_load, aten = torch.Generator, torch.load, torch.ops.aten


def is_there(t):
    "Whether the tensor `t` is on the second device"
    with torch._C.DisableTorchFunction(): return getattr(t.untyped_storage(), 'is_there', False)


def put(o, elsewhere=True):
    "Say that the tensors in `o` are on the second device, or on the CPU"
    for t in tree_leaves(o):
        if isinstance(t, Tensor) and t.device.type != 'meta':
            with torch._C.DisableTorchFunction(): t.untyped_storage().is_there = elsewhere
    return o


def means_there(device):
    "Whether `device`, as torch's functions take it, is the second device"
    return device is not None and not isinstance(device, int) and torch.device(device).type == there.type


class SecondGenerator(torch_generator):
    "A generator of random numbers that knows the device it was made for"
    def __new__(cls, device='cpu'):
        made = super().__new__(cls)
        made.is_there = means_there(device)
        return made


may_mix = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor} # between devices
takes_cpu_indices = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


def check_one_device(func, args, kwargs):
    "Whether the result of a call is on the second device; raises `RuntimeError` if its tensors are on both, numbers and row numbers aside"
    tensors = [o for o in tree_leaves((args, kwargs)) if isinstance(o, Tensor)]
    if not tensors: return _Calls.of_second
    far = [is_there(o) for o in tensors]
    mixed = any(far) and any(o.ndim and not f for o,f in zip(tensors, far))
    if func in takes_cpu_indices and is_there(args[0]): mixed = len(args) > 2 and args[2].ndim and not is_there(args[2])
    if mixed and func not in may_mix:
        raise RuntimeError(f'{func}: expected all tensors to be on the same device, got {[("cpu", str(there))[o] for o in far]}')
    return any(far)


class _Operations(TorchDispatchMode):
    "Every operation of torch, those of the backward pass too"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        far = check_one_device(func, args, kwargs)
        out = func(*args, **kwargs)
        if func is aten.copy_.default or func is aten.set_.source_Tensor: return out
        return put(out) if far else out


def _moved(x, *args, **kwargs):
    "`x.to(...)`, where a device may be named"
    device = args[0] if args and not isinstance(args[0], (torch.dtype, bool)) else kwargs.get('device', kwargs.get('other'))
    if isinstance(device, Tensor): args, device = (device.dtype, *args[1:]), there if is_there(device) else 'cpu'
    elif device is None or torch.device(device).type == 'meta': return Tensor.to(x, *args, **kwargs)
    elif 'device' in kwargs: kwargs['device'] = 'cpu'
    else: args = ('cpu', *args[1:])
    out = Tensor.to(x, *args, **kwargs)
    if is_there(x) == means_there(device): return out
    return put(out.clone() if out.untyped_storage()._cdata == x.untyped_storage()._cdata else out, means_there(device))


class _Calls(TorchFunctionMode):
    "Every call of torch from Python; what torch makes within it, without naming a device, is where the arguments are"
    of_second = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, '__name__', '')
        if func == Tensor.device.__get__: return there if is_there(args[0]) else func(*args)
        if func == Tensor.is_cpu.__get__: return not is_there(args[0])
        if name in ('numpy', '__array__') and is_there(args[0]): raise TypeError(f"can't convert {there} device type tensor to numpy")
        if func is Tensor.to: return _moved(*args, **kwargs)
        if func is Tensor.cpu: return _moved(args[0], 'cpu')
        if name == '__deepcopy__': return put(func(*args, **kwargs), is_there(args[0]))
        self._check_generator(kwargs, args)
        device = kwargs.get('device')
        if device is None or name == '_parse_to': return self._within(func, args, kwargs)
        if torch.device(device).type == 'meta': return func(*args, **kwargs)
        return put(func(*args, **kwargs | dict(device='cpu')), means_there(device))

    def _within(self, func, args, kwargs):
        "Call `func`, which names no device"
        before = _Calls.of_second
        _Calls.of_second = any(is_there(o) for o in tree_leaves((args, kwargs)) if isinstance(o, Tensor))
        try: return func(*args, **kwargs)
        finally: _Calls.of_second = before

    def _check_generator(self, kwargs, args):
        "Raise `RuntimeError` for random numbers on one device from a generator of the other"
        g = kwargs.get('generator')
        if not isinstance(g, SecondGenerator): return
        like = args[0] if args and isinstance(args[0], Tensor) else None
        wanted = means_there(kwargs.get('device')) or like is not None and is_there(like)
        if g.is_there != wanted: raise RuntimeError(f'expected a generator of {("cpu", there)[wanted]}')


def _load(f, map_location=None, **kwargs):
    far = isinstance(map_location, (str, torch.device)) and means_there(map_location)
    found = torch_load(f, map_location='cpu' if far else map_location, **kwargs)
    return put(found) if far else found


@contextmanager
def second_device():
    "Context manager in which `there` is a device of this machine"
    torch.Generator, torch.load = SecondGenerator, _load
    try:
        with _Operations(), _Calls(): yield there
    finally: torch.Generator, torch.load = torch_generator, torch_load
