#!/usr/bin/env python3
"""Make the data files that are shipped with the package from their originals.

    python tools/make_shipped.py --boston boston_house_prices.csv   # needs the four Fashion-MNIST files too
    python tools/make_shipped.py --check                            # compare what is shipped with Fashion-MNIST

`fashion_mini.npz` holds the first 300 training and the first 100 test images of each class of Fashion-MNIST, in their
official order. `boston_housing.csv` is scikit-learn 1.1's file without its first line. No random number is drawn, and the
same zlib gives the same bytes.
"""
import argparse, io
from pathlib import Path

import numpy as np

from dlcourse.data.sources import load

FILES = Path(__file__).resolve().parent.parent/'dlcourse'/'data'/'files'
LICENSE = '''Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist
fashion_mini.npz holds a part of it, unchanged: the first 300 training and the first 100 test images of each class.

The MIT License (MIT) Copyright © 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the “Software”), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED “AS IS”, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
'''


def first_per_class(y, n):
    "Sorted positions of the first `n` examples of each class in `y`"
    return np.sort(np.concatenate([np.flatnonzero(y == c)[:n] for c in np.unique(y)]))


def fashion_arrays():
    "The arrays of `fashion_mini.npz`, taken from the whole of Fashion-MNIST"
    d = load('fashion_mnist', download=False)
    res = {}
    for part, x, y, n in (('train', d.x, d.y, 300), ('test', d.x_test, d.y_test, 100)):
        i = first_per_class(y.numpy(), n)
        res[f'x_{part}'], res[f'y_{part}'] = x[i, 0].numpy(), y[i].numpy().astype(np.uint8)
    return res


def fashion_mini():
    "The bytes of `fashion_mini.npz`"
    f = io.BytesIO()
    np.savez_compressed(f, **fashion_arrays())
    return f.getvalue()


def boston(csv):
    "The bytes of `boston_housing.csv`: the header and the 506 rows of scikit-learn's file, as they are"
    first, rest = Path(csv).read_bytes().split(b'\n', 1)
    assert first.startswith(b'506,13'), f'{csv} is not the file of scikit-learn 1.1'
    return rest


def check():
    "Whether the shipped images are those of Fashion-MNIST"
    with np.load(FILES/'fashion_mini.npz') as shipped: return all(np.array_equal(shipped[k], v) for k, v in fashion_arrays().items())


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--boston', help="scikit-learn 1.1's boston_house_prices.csv; left out, that file is left as it is")
    p.add_argument('--check', action='store_true', help='write nothing, compare')
    args = p.parse_args()
    if args.check: raise SystemExit(None if check() else 'fashion_mini.npz differs from Fashion-MNIST')
    FILES.mkdir(parents=True, exist_ok=True)
    (FILES/'fashion_mini.npz').write_bytes(fashion_mini())
    (FILES/'fashion_mini.LICENSE').write_text(LICENSE, encoding='utf-8')
    if args.boston: (FILES/'boston_housing.csv').write_bytes(boston(args.boston))
    for f in sorted(FILES.iterdir()): print(f'{f.stat().st_size:>9,} {f.name}')
